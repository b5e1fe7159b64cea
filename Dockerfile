# noprop on CPU. Train ten blocks on digits, and keep the run:
#   docker build -t noprop .
#   docker run --rm -v "$PWD/runs:/noprop/runs" noprop
# Any command: docker run --rm -v "$PWD/runs:/noprop/runs" noprop evaluate runs/digits-dt
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# The second index has builds of torch without CUDA, which are gigabytes smaller.
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[all]'

RUN useradd --create-home noprop && mkdir /noprop && chown noprop /noprop
USER noprop
WORKDIR /noprop
ENV OMP_NUM_THREADS=1
ENTRYPOINT ["noprop"]
CMD ["train"]
