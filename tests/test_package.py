"""The package as it is installed: imports, versions, extras, completion, and files around it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import noprop
from noprop.report.trackers import TRACKERS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The top modules of everything that an extra brings.
OPTIONAL = (
    *("sklearn", "scipy", "PIL", "pooch", "pandas", "pyarrow", "matplotlib", "jinja2"),
    *("torchdiffeq", "onnx", "onnxscript", "onnxruntime", "ray", "submitit", "argcomplete"),
    *("huggingface_hub", "tensorboard", "wandb", "trackio", "mlflow", "datasets", "timm"),
    *("gradio", "fastapi", "uvicorn"),
)


def run(*words: str, **environment: str) -> str:
    """Run Python, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("noprop", ("torch", "numpy", "pydantic", "rich", *OPTIONAL)),
        ("noprop.cli", ("torch", "numpy", *OPTIONAL)),
        ("noprop.model", OPTIONAL),
    ],
)
def test_importing_imports_nothing_heavy(module, heavy):
    """Whatever is installed: extras are imported when they are used."""
    code = f"import sys, {module}; print(*sys.modules)"
    assert set(run("-c", code).split()) & set(heavy) == set()


def test_the_version_names_torch_without_importing_it():
    code = (
        "import sys; from noprop.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    first, torch_came = run("-c", code).splitlines()
    assert re.fullmatch(rf"noprop {noprop.__version__} \(torch 2\.[\w.+]+, Python 3[\d.]+\)", first)
    assert torch_came == "False"


def test_the_versions_agree():
    assert PROJECT["version"] == noprop.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == noprop.__version__


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("noprop desc", {"describe"}),
        ("noprop train mnist-dt-rad", {"mnist-dt-radial"}),
        ("noprop train --epo", {"--epochs"}),
        ("noprop train --set train.epo", {"train.epochs="}),
    ],
)
def test_the_shell_completes(tmp_path, line, wanted):
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    answer = tmp_path / "answer"
    run(
        *("-m", "noprop"),
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert {word.strip() for word in answer.read_text().split("\013")} == wanted


def test_the_extras_that_are_named_exist():
    """In the documentation, and in messages about a package that is missing."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.py")]
    text = "\n".join(file.read_text() for file in files if file.name != "CHANGELOG.md")
    named = {e for names in re.findall(r"noprop\[([\w,-]+)\]", text) for e in names.split(",")}
    assert len(named) > 8
    assert named - set(EXTRAS) == set()


def test_every_extra_is_on_the_page_of_connections():
    """With what it brings, where it brings others."""
    text = (ROOT / "docs/ecosystem.md").read_text()
    assert set(re.findall(r"`noprop\[(\w+)\]`", text)) == set(EXTRAS)
    (brought,) = re.findall(r"`noprop\[all\]` brings ([\w, ]+)\.", text)
    assert EXTRAS["all"] == [f"noprop[{','.join(re.split(', | and ', brought))}]"]


def test_ci_has_what_the_tests_of_small_extras_need():
    """Without these packages the tests of the Hub, TensorBoard, … would be skipped, unseen."""
    assert set(TRACKERS) <= set(EXTRAS)
    brought = {
        e for line in EXTRAS["dev"] if "noprop[" in line for e in re.findall(r"[\w-]+", line)
    }
    assert {"all", "completion", "datasets", "docs", "hub", "onnx", "tensorboard"} <= brought


def test_workflows_run_the_checks_and_publish_tags_alone():
    flows = {p.stem: yaml.safe_load(p.read_text()) for p in ROOT.glob(".github/workflows/*.yml")}
    steps = flows["ci"]["jobs"]["ci"]["steps"]
    assert "bash .ci/run" in [step.get("run") for step in steps]
    publish = flows["publish"]
    assert publish[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" as true
    assert publish["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert publish["jobs"]["publish"]["needs"] == "build"
    for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"):
        assert yaml.safe_load(path.read_text())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_tag_of_another_version_is_not_published():
    flow = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())
    (check,) = [
        step["run"] for step in flow["jobs"]["build"]["steps"] if "tag" in step.get("name", "")
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for tag, status in ((f"v{noprop.__version__}", 0), ("v0.0.1", 1)):
        environment = os.environ | {"GITHUB_REF_NAME": tag, "PATH": path}
        done = subprocess.run(["bash", "-c", check], cwd=ROOT, env=environment, check=False)
        assert done.returncode == status


def test_the_image_is_built_of_files_that_exist():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line != "*"}
    assert len(copied) > 3
    assert set(copied) == sent
    assert all((ROOT / name).exists() for name in copied)
    assert f'CMD ["{"train"}"]' in lines


@pytest.mark.slow
def test_the_wheel_without_extras_trains_digits(tmp_path):
    """Every module of an extra is hidden."""
    pytest.importorskip("build", reason="build is not installed: pip install build")
    out = tmp_path / "dist"
    run(*("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)))
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.modules |= dict.fromkeys({OPTIONAL})\n"
        "import noprop; print(noprop.__file__)\n"
        "model = noprop.train('digits-dt', epochs=3, workers=1, evaluation='full',\n"
        f"    folder={str(tmp_path / 'run')!r}, overrides={{'method.num_blocks': 2}})\n"
        "print(model.results['accuracy'])\n"
    )
    file, accuracy = run("-c", code, PYTHONPATH=str(tmp_path / "site")).split()
    assert Path(file).is_relative_to(tmp_path)
    assert float(accuracy) > 80


@pytest.mark.slow
def test_the_method_of_the_contributing_guide_trains(tmp_path):
    """Its code is at most 60 lines, blank ones apart, and its chain knows most digits."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = (part.split("```")[0] for part in text.split("```python\n")[1:])
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    (tmp_path / "method.py").write_text(code)
    accuracies = re.findall(r"'([\w-]+)': ([\d.]+)", run(str(tmp_path / "method.py")))
    assert {name for name, accuracy in accuracies if float(accuracy) > 90} >= {"mean", "path"}
