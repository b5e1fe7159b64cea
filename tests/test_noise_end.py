"""z_0 tells nothing of the label: from what the first network is shown, Bayes' rule has to guess.

Every recipe is built with its embeddings, and its first network replaced by one that shows the
latent of the loss. Where a latent bears the label (DT, CT) it is read by the likelihood of
q(z_0|y), elsewhere by the nearest embedding.
"""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noprop.build import build_embedding, build_method, resolve_auto
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.embeddings import Embedding, greatest_distance
from noprop.methods import ct
from noprop.recipes import RECIPES
from noprop.schedules import cosine_gamma
from noprop.task import Task, load_data

N = 5_000
# What has no stored copy, or many images to read, has small noise images: 28 to 55 in length.
NOISE = {
    "fashion-mnist": ((1, 28, 28), 10), "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 16, 16), 200),
}  # fmt: skip
LIGHT = {"method.encoder": "mlp", "data.train_size": 2_000}


class ShownError(Exception):
    """Carries the latent that the first network was shown."""


class Watch(nn.Module):
    """In the place of a network: it shows what it gets and computes nothing."""

    def context(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x

    def time_context(self, t: Tensor) -> Tensor:
        return t[:, None]

    def forward(self, z: Tensor, *others: object) -> Tensor:
        raise ShownError(z)


@pytest.fixture(scope="module")
def data_of(real_data):
    """A function of a data set: task and training examples, real ones where that is quick."""

    @cache
    def data(name: str) -> tuple[Task, Examples]:
        if name not in NOISE:
            folder = None if name == "digits" else real_data(name)
            config = replace(RunConfig(), {"data.dataset": name, "data.train_size": 2_000})
            loaded = load_data(config, folder)
            return loaded.task, loaded.train
        shape, classes = NOISE[name]
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (2 * classes, *shape), generator=generator, dtype=torch.uint8)
        names = tuple(str(i) for i in range(classes))
        task = Task(shape, names, Normalization.of(x))
        return task, Examples(x, torch.arange(2 * classes) % classes)

    return data


@pytest.fixture(scope="module")
def embedding_of(data_of):
    """A function of a recipe: its W_Embed before training."""
    made: dict[tuple[object, ...], Embedding] = {}

    def embedding(config: RunConfig) -> Embedding:
        c = config.method
        key = (config.data.dataset, c.embedding, getattr(c, "dim", None), c.learned)
        if key not in made:
            made[key] = build_embedding(config, *data_of(config.data.dataset))
        return made[key]

    return embedding


def first_latent(method: Any, weight: Tensor, y: Tensor, monkeypatch) -> Tensor:
    """What the first network is shown by the loss at t = 0, with these embeddings."""
    unit = method.units[0]
    unit.embedding = Embedding(weight, learned=False)
    watch = Watch()
    if hasattr(unit, "blocks"):
        unit.blocks = [watch] * len(unit.blocks)
    else:
        unit.network = watch
        if hasattr(unit, "solve"):  # a solver of ODEs: it begins at z(0)
            unit.solve = lambda z, context: watch(z)
    monkeypatch.setattr(ct, "draw_times", lambda n, *others: torch.zeros(n))
    monkeypatch.setattr(torch, "rand", lambda n, **others: torch.zeros(n))
    with pytest.raises(ShownError) as caught:
        unit.loss(torch.zeros(len(y), 1), y, torch.Generator().manual_seed(1))
    return caught.value.args[0]


def bayes_accuracy(z: Tensor, y: Tensor, weight: Tensor, gamma: Tensor | float) -> float:
    """Of the most probable label given z ~ q(z|y) at this γ, all labels alike probable."""
    gamma = torch.as_tensor(gamma, dtype=torch.float64)
    mean = torch.sigmoid(-gamma).sqrt() * weight.double()
    score = z.double() @ mean.T - mean.square().sum(dim=1) / 2
    return (score.argmax(dim=1) == y).double().mean().item()


def in_their_span(weight: Tensor) -> Tensor:
    """The rows turned into their own span: the same distances, in at most m dimensions."""
    return weight @ torch.linalg.qr(weight.T)[0]


def labels(classes: int) -> Tensor:
    return torch.randint(classes, (N,), generator=torch.Generator().manual_seed(2))


def is_chance(accuracy: float, classes: int) -> bool:
    """Within 5 standard errors: by chance alone one case in 1.7 million is not."""
    p = 1 / classes
    return abs(accuracy - p) < 5 * math.sqrt(p * (1 - p) / N)


def noise_end(config: RunConfig, task: Task, embedding: Embedding, monkeypatch) -> float:
    """Bayes' accuracy from z_0 alone under the run's settled configuration."""
    config = resolve_auto(replace(config, LIGHT), embedding)
    name = "block-1" if config.method.name == "dt" else "network"
    method: Any = build_method(config, task, embedding, only=name)
    weight, y = in_their_span(embedding.weight.detach()), labels(task.num_classes)
    gamma = {"dt": lambda: method.gamma[0], "ct": lambda: method.unit.schedule(torch.zeros(1))[0]}
    z = first_latent(method, weight, y, monkeypatch)
    at = gamma.get(config.method.name, lambda: 0.0)()
    return bayes_accuracy(z, y, weight, torch.as_tensor(at).detach())


@pytest.mark.parametrize("recipe", [n for n, c in RECIPES.items() if not c.method.stack])
def test_the_noise_end_tells_no_label(recipe, data_of, embedding_of, monkeypatch):
    config = RECIPES[recipe]
    task, _ = data_of(config.data.dataset)
    accuracy = noise_end(config, task, embedding_of(config), monkeypatch)
    assert is_chance(accuracy, task.num_classes), accuracy


@pytest.mark.parametrize(("dataset", "least"), [("mnist", 0.25), ("cifar10", 0.3)])
def test_a_noise_end_that_ignores_the_embeddings_tells_it(
    dataset, least, data_of, embedding_of, monkeypatch
):
    """γ(0) = 6, right for one-hot embeddings, with prototypes: 36 % on MNIST, 41 % on CIFAR-10."""
    config = replace(RECIPES[f"{dataset}-ct-prototype"], {"method.gamma_noise": 6.0})
    task, _ = data_of(dataset)
    accuracy = noise_end(config, task, embedding_of(config), monkeypatch)
    assert accuracy > least


@pytest.mark.parametrize("kind", ["", "-d20", "-prototype"])
def test_the_cosine_schedule_of_dt_tells_the_label_of_prototypes_at_level_1(
    kind, data_of, embedding_of
):
    """Not of one-hot embeddings; and not with an offset of γ that follows the embeddings."""
    config = RECIPES[f"mnist-dt{kind}"]
    task, _ = data_of("mnist")
    embedding = embedding_of(config)
    weight, y = in_their_span(embedding.weight.detach()), labels(task.num_classes)

    def accuracy(shift: float) -> float:
        gamma = cosine_gamma(10)[1] + shift
        noise = torch.empty(N, weight.shape[1]).normal_(generator=torch.Generator().manual_seed(3))
        mean = torch.sigmoid(-gamma).sqrt() * weight[y]
        return bayes_accuracy(mean + torch.sigmoid(gamma).sqrt() * noise, y, weight, gamma)

    method: Any = resolve_auto(replace(config, {"method.gamma_shift": "auto"}), embedding).method
    shift = method.gamma_shift
    assert (accuracy(0.0) > 0.8) == (kind == "-prototype")
    assert accuracy(shift) < 0.25


def test_the_noise_end_follows_the_embeddings_and_an_explicit_value_wins(embedding_of):
    """γ(0) = 6 + log of the greatest squared distance; the learned one moves around it."""
    for recipe in ("digits-ct", "digits-ct-d20", "digits-ct-prototype"):
        config = RECIPES[recipe]
        embedding = embedding_of(config)
        auto: Any = resolve_auto(config, embedding).method
        assert auto.gamma_noise == pytest.approx(
            6 + 2 * math.log(greatest_distance(embedding.weight)), abs=1e-5
        )
        given = replace(config, {"method.gamma_noise": 8.5})
        explicit: Any = resolve_auto(given, embedding).method
        assert explicit.gamma_noise == 8.5
