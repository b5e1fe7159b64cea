"""Prediction: images a second of ours against the plain chain, the cost of more chains, the bound.

Ours is ``TrainedModel.predict`` as anyone calls it, with the weights a network begins with: x's
features once, x's and t's parts of the head's first layer once, chunks of 500 images beside each
other. The plain chain reads the images anew at every step; it is timed over a few of its steps,
each of which costs the same. Both run the mean chain in the precision that they have by themselves.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noprop.bench.contestants import Contestant, race, ratios
from noprop.bench.plain import plain_inference, plain_training
from noprop.bench.rates import product_kind
from noprop.bench.roofline import count
from noprop.bench.settings import Settings
from noprop.config import replace
from noprop.evaluate import inputs, prepare
from noprop.model import Model, empty_model, ready
from noprop.trained_model import TrainedModel

__all__ = ["measure_chains", "measure_inference"]

CHUNK = 500  # images that the plain chain has at a time, as ours
PLAIN_STEPS = 3
MANY = 10
Progress = Callable[[str], None]


def measure_inference(
    settings: Settings, rates: dict[str, float], found: dict[str, Any], progress: Progress
) -> None:
    """Of each method: images a second of both, how many times as fast ours is, share of the bound.

    The chains of ``ct``, ``fm`` and ``adjoint`` have ``settings.steps`` steps. The bound is that of
    the features' products in the precision of training, and of the chain's in float32.
    """
    for method in settings.methods:
        common = {"bench": settings.as_dict(), "method": method}
        blocks = method in ("dt", "backprop")
        made = settings.blocks if blocks else min(PLAIN_STEPS, settings.steps)
        timings = race(
            {
                "ours": Contestant(_build_model, {**common, "samples": 1}),
                "plain": Contestant(_build_chain, {**common, "made": made}),
            },
            rounds=settings.rounds,
            seconds=settings.seconds,
            progress=lambda text, method=method: progress(f"prediction {method}: {text}"),
        )
        whole = 1 if blocks else settings.steps / made
        images = {"ours": settings.images, "plain": min(CHUNK, settings.images) / whole}
        features, chain = count_prediction(settings, method)
        bound = features / rates[product_kind()] + chain / rates["float32"]
        speed = {name: t.rate(images[name]) for name, t in timings.items()}
        taken = settings.images / speed["ours"]["median"]
        scale = settings.images / images["plain"]
        found[method] = {
            "steps": settings.blocks if blocks else settings.steps,
            "images_per_second": speed,
            "ours_over_plain": ratios(timings["ours"], timings["plain"], scale),
            "operations": features + chain,  # of an image
            "share_of_bound": bound * settings.images / taken,
        }


def measure_chains(settings: Settings, found: dict[str, Any], progress: Progress) -> None:
    """What ten chains with noise cost NoProp-DT, in times of one: the features serve them all."""
    common = {"bench": settings.as_dict(), "method": "dt", "noise": True}
    timings = race(
        {str(k): Contestant(_build_model, {**common, "samples": k}) for k in (1, MANY)},
        rounds=settings.rounds,
        seconds=settings.seconds,
        progress=lambda text: progress(f"chains: {text}"),
    )
    found["chains"] = MANY
    found["images_per_second"] = {k: t.rate(settings.images) for k, t in timings.items()}
    found["cost_over_one"] = ratios(timings["1"], timings[str(MANY)])


def model_of(settings: Settings, method: str) -> Model:
    """A model as it begins, ready to predict."""
    config = settings.config(method)
    if method == "adjoint":
        config = replace(config, {"method.steps": settings.steps})
    model = empty_model(config, settings.task, None)
    ready(model)
    return model


def _build_model(settings: dict[str, Any]) -> Callable[[int], None]:
    bench = Settings(**settings["bench"])
    torch.set_num_threads(bench.workers)
    model = TrainedModel(Path("unused"), model_of(bench, settings["method"]))
    x, _ = bench.data(bench.images)

    def work(units: int) -> None:
        for _ in range(units):
            noise = settings.get("noise", False)
            model.predict(x, samples=settings["samples"], noise=noise, average="readout")

    return work


def _build_chain(settings: dict[str, Any]) -> Callable[[int], None]:
    bench, method = Settings(**settings["bench"]), settings["method"]
    blocks = method in ("dt", "backprop")
    steps = bench.blocks if blocks else bench.steps
    _, networks = plain_training(method, bench.shape, bench.classes, steps)
    chain = [network.eval() for network in networks[:-1]]  # the last is the readout
    x = bench.data(min(CHUNK, bench.images))[0].float() / 255

    def work(units: int) -> None:
        for _ in range(units):
            plain_inference(method, chain, x, steps, settings["made"])

    return work


def count_prediction(settings: Settings, method: str) -> tuple[float, float]:
    """Operations an image of the features, and of the mean chain that follows."""
    model = model_of(settings, method)
    x, draws = inputs(model, settings.data(CHUNK)[0]), torch.Generator()
    features = count(lambda: prepare(model, x))
    prepared = prepare(model, x)
    chain = count(lambda: model.method.predict(x, draws, noise=False, prepared=prepared))
    return features.operations / CHUNK, chain.operations / CHUNK
