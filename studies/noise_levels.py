"""What the latents alone tell of the label: Bayes' accuracy at each level of NoProp-DT, or at z_0.

Nothing of the image is read, and nothing is trained.

    python studies/noise_levels.py mnist            # each level, each kind of embeddings
    python studies/noise_levels.py --run RUN        # z_0 of a trained run of NoProp-CT
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noprop
from noprop.build import build_embedding, resolve_auto
from noprop.config import replace
from noprop.diffusion import sample_latent
from noprop.methods.ct import ContinuousNoProp
from noprop.recipes import EMBEDDINGS, RECIPES
from noprop.schedules import cosine_gamma
from noprop.task import load_data
from study import Line, Study

DRAWS = 20_000


def accuracy(weight: Tensor, gamma: Tensor) -> float:
    """Return the accuracy in % of the most probable label given z ~ q(z|y), for y uniform."""
    weight, gamma = weight.double(), gamma.double()
    weight = weight @ torch.linalg.qr(weight.T)[0]  # into their span: the same distances
    y = torch.randint(len(weight), (DRAWS,), generator=torch.Generator().manual_seed(2))
    z = sample_latent(weight[y], gamma, torch.Generator().manual_seed(3))
    mean = torch.sigmoid(-gamma).sqrt() * weight
    guess = (z @ mean.T - mean.square().sum(dim=1) / 2).argmax(dim=1)
    return 100 * (guess == y).float().mean().item()


def main() -> None:
    """Print a row for each kind of embeddings, with γ shifted and not, or that of a run."""
    study = Study(__doc__, "noise-levels.jsonl")
    study.parser.add_argument("dataset", nargs="?", choices=("digits", "mnist", "cifar10"))
    study.parser.add_argument("--run", type=Path, help="a finished run of NoProp-CT")
    options = study.parse()
    if options.run:
        method = noprop.load(options.run).method
        assert isinstance(method, ContinuousNoProp), "--run: wanted a run of NoProp-CT"
        gamma = method.unit.schedule(torch.zeros(1))[0].detach()[0]
        print(f"γ(0) {gamma:.3f}: {accuracy(method.embedding.weight.detach(), gamma):.1f} %")

    def measure(key: Line) -> Iterator[Line]:
        config = RECIPES[key["recipe"]]
        data = load_data(config, options.data_dir)
        embedding = build_embedding(config, data.task, data.train)
        auto: Any = resolve_auto(replace(config, {"method.gamma_shift": "auto"}), embedding)
        for shift in (0.0, float(auto.method.gamma_shift)):
            levels = [accuracy(embedding.weight.detach(), g) for g in cosine_gamma(10) + shift]
            yield {"gamma_shift": shift, "accuracy": levels}

    keys = [{"recipe": f"{options.dataset}-dt{e}"} for e in EMBEDDINGS if options.dataset]
    study.measure(keys, measure)
    for key in keys:
        for line in study.lines(**key):
            levels = (f"{level:.1f}" for level in line["accuracy"])
            print(key["recipe"], f"{line['gamma_shift']:.2f}:", *levels)


if __name__ == "__main__":
    main()
