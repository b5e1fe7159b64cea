"""Suite ``prediction``: images per second compared with the plain chain, and the cost of chains.

Ours is ``Model.predict`` with untrained weights. It computes the features of x once, and the
parts of the head's first layer for x and t once; chunks of 500 images run in parallel. The plain
chain computes the features again at every step. It is timed over a few steps, all of the same cost.
Both run the mean chain in their default precision. Networks that read x alone are compared with
those that read x and z.

Where the extra ``onnx`` is installed, the exported graph runs in ONNX Runtime: the same prediction
in float32, on batches of the same size, with as many threads.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from noprop.bench.contestants import Contestant, race, ratios
from noprop.bench.display import compared_figure, compared_table, shown
from noprop.bench.plain import plain_inference, plain_training
from noprop.bench.rates import product_kind
from noprop.bench.roofline import count
from noprop.bench.settings import Settings
from noprop.bench.suites import Progress, Results, Suite
from noprop.config import replace
from noprop.evaluate import inputs, prepare
from noprop.model import Model, empty_model, ready

__all__ = ["SUITE"]

CHUNK = 500  # images in a batch of the plain chain, as in ours
PLAIN_STEPS = 3
MANY = 10
LONG_CHAINS = ("ct", "fm")
EXPORTED = ("dt", "backprop")  # a graph has every step, so it takes the short chains
READS: dict[str, dict[str, Any]] = {
    "x and z": {},
    "x": {"method.evidence": "exact", "method.network_reads": "x"},
}


def measure(settings: Settings, results: Results, progress: Progress) -> None:
    """Measure images per second of both, their ratio, and the share of the bound that ours has.

    The chains of ``ct``, ``fm`` and ``adjoint`` have ``settings.steps`` steps. The bound is that of
    the features' products in the precision of training, and of the chain's in float32.
    """
    rates = results["rates"]
    found = results["prediction"] = {}
    for method in settings.methods:
        common = {"bench": settings, "method": method}
        steps = chain_length(settings, method)
        made = steps if method in ("dt", "backprop") else min(PLAIN_STEPS, steps)
        timings = race(
            {
                "ours": Contestant(_build_ours, common),
                "plain": Contestant(_build_plain, {**common, "made": made}),
            },
            rounds=settings.rounds,
            seconds=settings.seconds,
            progress=lambda text, method=method: progress(f"prediction {method}: {text}"),
        )
        plain_images = min(CHUNK, settings.images) * made / steps
        images = {"ours": settings.images, "plain": plain_images}
        features, chain = count_prediction(settings, method)
        bound = features / rates[product_kind()] + chain / rates["float32"]
        speed = {name: t.rate(images[name]) for name, t in timings.items()}
        scale = settings.images / plain_images
        found[method] = {
            "steps": steps,
            "images_per_second": speed,
            "ours_over_plain": ratios(timings["ours"], timings["plain"], scale),
            "operations": features + chain,  # of an image
            "share_of_bound": bound * speed["ours"]["median"],
        }
    if "dt" in settings.methods:
        results["chains"] = measure_chains(settings, progress)
    if methods := _long_chains(settings):
        results["reads"] = {m: measure_reads(settings, m, progress) for m in methods}
    if methods := _exported(settings):
        results["exported"] = {m: measure_exported(settings, m, progress) for m in methods}


def _exported(settings: Settings) -> list[str]:
    """Return the methods whose graph is measured: none without the extra."""
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return []
    return [method for method in settings.methods if method in EXPORTED]


def _long_chains(settings: Settings) -> list[str]:
    return [method for method in settings.methods if method in LONG_CHAINS]


def measure_chains(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Measure the cost of ten chains with noise of NoProp-DT, which share the features."""
    common = {"bench": settings, "method": "dt", "noise": True}
    timings = race(
        {str(k): Contestant(_build_ours, {**common, "samples": k}) for k in (1, MANY)},
        rounds=settings.rounds,
        seconds=settings.seconds,
        progress=lambda text: progress(f"chains: {text}"),
    )
    return {
        "chains": MANY,
        "images_per_second": {k: t.rate(settings.images) for k, t in timings.items()},
        "cost_over_one": ratios(timings["1"], timings[str(MANY)]),
    }


def measure_reads(settings: Settings, method: str, progress: Progress) -> dict[str, Any]:
    """Measure the mean chain of networks that read x alone, compared with x and z."""
    timings = race(
        {
            reads: Contestant(
                _build_ours, {"bench": settings, "method": method, "changes": changes}
            )
            for reads, changes in READS.items()
        },
        rounds=settings.rounds,
        seconds=settings.seconds,
        progress=lambda text: progress(f"networks of {method} that read x alone: {text}"),
    )
    return {
        "steps": chain_length(settings, method),
        "images_per_second": {reads: t.rate(settings.images) for reads, t in timings.items()},
        "speedup": ratios(timings["x"], timings["x and z"]),
    }


def measure_exported(settings: Settings, method: str, progress: Progress) -> dict[str, Any]:
    """Measure the exported mean chain in ONNX Runtime, compared with ours in both precisions."""
    common = {"bench": settings, "method": method, "average": None}
    float32 = {**common, "changes": {"train.precision": "float32"}}
    timings = race(
        {
            "ours": Contestant(_build_ours, common),
            "ours, float32": Contestant(_build_ours, float32),
            "onnxruntime": Contestant(_build_exported, {"bench": settings, "method": method}),
        },
        rounds=settings.rounds,
        seconds=settings.seconds,
        progress=lambda text: progress(f"the exported graph of {method}: {text}"),
    )
    return {
        "threads": settings.workers,
        "batch": CHUNK,
        "images_per_second": {name: t.rate(settings.images) for name, t in timings.items()},
        "onnxruntime_over_ours": {
            name: ratios(timings["onnxruntime"], timings[name])
            for name in ("ours", "ours, float32")
        },
    }


def chain_length(settings: Settings, method: str) -> int:
    """Return T in prediction."""
    return settings.blocks if method in ("dt", "backprop") else settings.steps


def model_of(settings: Settings, method: str, changes: Mapping[str, Any] | None = None) -> Model:
    """Build an untrained model that is ready to predict."""
    config = replace(settings.config(method), changes or {})
    if method == "adjoint":
        config = replace(config, {"method.steps": settings.steps})
    model = empty_model(config, settings.task)
    ready(model)
    return model


def _build_ours(
    bench: Settings,
    method: str,
    samples: int = 1,
    noise: bool = False,
    changes: Mapping[str, Any] | None = None,
    average: str | None = "readout",
) -> Callable[[int], None]:
    torch.set_num_threads(bench.workers)
    model = model_of(bench, method, changes)
    x, _ = bench.data(bench.images)

    def work(units: int) -> None:
        for _ in range(units):
            model.predict(x, samples=samples, noise=noise, average=average)

    return work


def _build_exported(bench: Settings, method: str) -> Callable[[int], None]:
    import onnxruntime

    from noprop.export import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = bench.workers
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model_of(bench, method), path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = [batch.numpy() for batch in bench.data(bench.images)[0].split(CHUNK)]

    def work(units: int) -> None:
        for _ in range(units):
            for batch in batches:
                session.run(None, {"x": batch})

    return work


def _build_plain(bench: Settings, method: str, made: int) -> Callable[[int], None]:
    steps = chain_length(bench, method)
    _, networks = plain_training(method, bench.shape, bench.classes, steps)
    chain = [network.eval() for network in networks[:-1]]  # the last is the readout
    x = bench.data(min(CHUNK, bench.images))[0].float() / 255

    def work(units: int) -> None:
        for _ in range(units):
            plain_inference(method, chain, x, steps, made)

    return work


def count_prediction(settings: Settings, method: str) -> tuple[float, float]:
    """Count the operations of an image: of the features, and of the mean chain that follows."""
    model = model_of(settings, method)
    x, draws = inputs(model, settings.data(CHUNK)[0]), torch.Generator()
    features = count(lambda: prepare(model, x))
    prepared = prepare(model, x)
    chain = count(lambda: model.method.predict(x, draws, noise=False, prepared=prepared))
    return features.operations / CHUNK, chain.operations / CHUNK


def text(results: Results) -> str:
    """Return the comparison with the plain chain, and the cost of more chains."""
    what = "prediction: the deterministic sampler; features as in training, chains in float32"
    lines = [f"{what}\n{compared_table(results['prediction'])}"]
    if chains := results.get("chains"):
        cost = shown(chains["cost_over_one"], 2)
        lines.append(f"dt, {chains['chains']} chains with noise cost {cost} times one")
    for method, found in results.get("reads", {}).items():
        rate = found["images_per_second"]["x"]["median"]
        lines.append(
            f"{method}, networks that read x alone, T = {found['steps']}: {rate:,.0f} images/s, "
            f"{shown(found['speedup'], 1)} times those that read x and z"
        )
    for method, found in results.get("exported", {}).items():
        speed, ratio = found["images_per_second"], found["onnxruntime_over_ours"]
        lines.append(
            f"{method}, the exported graph in ONNX Runtime, float32, threads: {found['threads']}: "
            f"{shown(speed['onnxruntime'])} images/s, "
            f"{shown(ratio['ours, float32'], 2)} times ours in float32 "
            f"({shown(speed['ours, float32'])}), "
            f"{shown(ratio['ours'], 2)} times ours as it is ({shown(speed['ours'])})"
        )
    return "\n\n".join(lines)


SUITE = Suite(
    steps=lambda settings: (
        settings.race_steps(2)
        * (len(settings.methods) + ("dt" in settings.methods) + len(_long_chains(settings)))
        + settings.race_steps(3) * len(_exported(settings))
    ),
    measure=measure,
    table=text,
    figures={
        "prediction-speed": lambda f, results: compared_figure(
            f, results["prediction"], "prediction"
        )
    },
)
