"""Evaluation of a trained chain: ways of predicting, levels of the chain, calibration and bound.

One chain with noise is a sample from p(y|x) (the paper's protocol); the mean of K chains, the path
average and the mean chain estimate p(y|x) itself. All use the same features, computed once.
"""

import math
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from noprop.averaging import calibration_error, fit_path_weights, wilson_interval
from noprop.config import RunConfig
from noprop.data import Examples, stratified
from noprop.errors import RunError, TrainingError
from noprop.files import read_object
from noprop.layers import channels_last
from noprop.machine import map_in_threads
from noprop.methods.base import Method, Prediction
from noprop.predictions import Predictions, predictions_of
from noprop.randomness import generator
from noprop.task import Task
from noprop.training.events import Emit, Evaluating, print_nothing

__all__ = [
    "CHAINS",
    "MEAN",
    "WEIGHT_EXAMPLES",
    "Score",
    "Trained",
    "check_finite",
    "choose_weights",
    "default_mode",
    "evaluate",
    "has_own_code",
    "inputs",
    "modes_of",
    "prepare",
    "read_evaluation",
]

MODES = ("single", "samples", "path", "path-fitted", "mean", "mean-path-fitted")
PATHLESS = ("single", "samples", "mean")
NOISELESS = ("single", "path-fitted")  # the second with a path
CHAINS = ("samples", "path", "path-fitted")  # those of K chains
MEAN = ("mean", "mean-path-fitted")  # those of the mean chain
# Examples to which path weights are fitted: as many numbers as blocks, or ten, need no more.
WEIGHT_EXAMPLES = 2000


@runtime_checkable
class Trained(Protocol):
    """The parts of a :class:`~noprop.model.Model` that evaluation uses; see there."""

    config: RunConfig
    task: Task
    method: Method
    device: torch.device
    bf16: bool


@dataclass
class Score:
    """Accuracy (percent) and log-loss (nats) of one way of predicting, one value per run."""

    accuracy: list[float] = field(default_factory=list)
    log_loss: list[float] = field(default_factory=list)

    def summary(self, examples: int, *, noise: bool = True) -> dict[str, Any]:
        """Return means, their standard errors over the runs, and an interval over examples.

        The standard error tells how much another run of inference would differ on the same
        examples, ``accuracy_interval`` (95 %, in percent) how much other examples would. Without
        ``noise`` all runs are the same, and there is no standard error.
        """
        runs = slice(None) if noise else slice(1)
        a, b = _mean_and_error(self.accuracy[runs]), _mean_and_error(self.log_loss[runs])
        interval = [100 * end for end in wilson_interval(a[0] / 100, examples)]
        numbers = {"accuracy": a[0], "accuracy_se": a[1], "log_loss": b[0], "log_loss_se": b[1]}
        return {**numbers, "accuracy_interval": interval}


def _mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the stored results of :func:`evaluate` for a finished run.

    Raises:
        RunError: If the file cannot be read, or lacks the accuracy of the default prediction.
    """
    path = folder / "evaluation.json"
    results = read_object(path)
    try:
        accuracies = [mode["accuracy"] for mode in results["modes"].values()]
        if not all(type(a) in (int, float) for a in accuracies):
            raise TypeError("an accuracy is not a number")
        if results["default"] not in results["modes"]:
            raise ValueError("the default is not one of its modes")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    return results


def choose_weights(
    model: Trained,
    validation: Examples,
    *,
    at_most: int = WEIGHT_EXAMPLES,
    emit: Emit = print_nothing,
) -> None:
    """Fit the weights of the path average on the validation part, from one set of chains.

    They stay uniform if the validation part is empty. Methods without a path have no weights.

    Args:
        model: Trained model, whose weights are set.
        validation: Validation part.
        at_most: About how many of its examples are used, stratified.
        emit: Called with :class:`~noprop.training.events.Evaluating`.
    """
    if len(validation) == 0 or model.method.path_weights is None:
        return
    some = stratified(validation, at_most)
    path = torch.cat(_paths(model, some, emit), dim=1)
    model.method.path_weights = fit_path_weights(path, some.y.to(path.device)).cpu()


def modes_of(model: Trained) -> tuple[str, ...]:
    """Return the ways of predicting that the method has."""
    if not model.method.has_noise:
        return NOISELESS[:1] if model.method.path_weights is None else NOISELESS
    return PATHLESS if model.method.path_weights is None else MODES


def default_mode(model: Trained) -> str:
    """Return the default way of predicting.

    It is the fitted path average, over K chains (DT) or of the mean chain (CT, FM). Methods without
    a path average K chains, or run the only one if there is no noise.
    """
    if not model.method.has_noise:
        return modes_of(model)[-1]
    if model.method.path_weights is None:
        return "samples"
    return "path-fitted" if model.method.noise_by_default else "mean-path-fitted"


def evaluate(
    model: Trained,
    examples: Examples,
    *,
    runs: int | None = None,
    modes: Collection[str] | None = None,
    emit: Emit = print_nothing,
    keep: Callable[[Predictions], None] | None = None,
) -> dict[str, Any]:
    """Return everything that ``noprop evaluate`` prints.

    Args:
        model: Trained model.
        examples: Raw examples of the data set, uint8 or float32.
        runs: Number of inference runs; ``evaluation.runs`` unless given.
        modes: Ways of predicting, of :func:`modes_of`; all unless given. Chains that none of them
            needs are not computed.
        emit: Called with :class:`~noprop.training.events.Evaluating`.
        keep: Called with the answers of the default prediction in the first run, if it is one of
            ``modes``.

    Returns:
        ``parameters``: their number; ``modes``: accuracy and log-loss of each way of predicting,
        mean, standard error over runs (None for one run) and interval over examples; ``times`` and
        ``steps``: accuracy at levels of one chain; ``evaluations`` of the network in one chain;
        ``calibration_error`` of the default, if it is one of ``modes``. Where the method has
        them, ``last_block_alone``, ``elbo`` (terms and their sum in nats), ``path_weights``, and
        ``answers``: names of the answers of a stack, with accuracies in ``steps`` from t = 1 on.

    Raises:
        TrainingError: If the predictions are not finite.
    """
    noise = model.method.has_noise
    runs = (runs or model.config.evaluation.runs) if noise else 1
    scores = {mode: Score() for mode in modes_of(model) if modes is None or mode in modes}
    chosen = default_mode(model)
    steps: list[Tensor] = []
    alone: list[float] = []
    errors: list[float] = []
    bound: dict[str, float] = {}
    chunks = _chunks_of_runs(model, examples, runs, scores, emit)
    for run in range(runs):
        parts = [chunk[run] for chunk in chunks]
        y = torch.cat([p["y"] for p in parts])
        for mode, score in scores.items():
            p = torch.cat([part[mode] for part in parts])
            check_finite(model, p)
            score.accuracy.append(100 * (p.argmax(1) == y).cpu().double().mean().item())
            likelihood = p[torch.arange(len(y), device=p.device), y].cpu().double()
            score.log_loss.append(-likelihood.clamp_min(1e-12).log().mean().item())
        labels = torch.cat([part["steps"] for part in parts], dim=1)
        steps.append(100 * (labels == y).cpu().double().mean(dim=1))
        if parts[0]["alone"] is not None:
            guesses = torch.cat([part["alone"] for part in parts])
            alone.append(100 * (guesses == y).cpu().double().mean().item())
        if chosen in scores:
            p = torch.cat([part[chosen] for part in parts])
            errors.append(calibration_error(p, y))
            if keep and run == 0:
                keep(predictions_of(p, y))
        shares = [len(part["y"]) / len(y) for part in parts]
        if parts[0]["bound"] is not None:  # that of the first run: it draws one level an example
            bound = {
                k: sum(s * part["bound"][k] for s, part in zip(shares, parts, strict=True))
                for k in parts[0]["bound"]
            }
    first = chunks[0][0]
    results: dict[str, Any] = {
        "method": model.config.method.name,
        "parameters": sum(p.numel() for p in model.method.parameters()),
        "examples": len(examples),
        "runs": runs,
        "samples": model.config.evaluation.samples,
        # dopri5 chooses its steps for each batch of chains.
        "evaluations": sum(p["evaluations"] for c in chunks for p in c) / (runs * len(chunks)),
        "default": chosen,
        "modes": {
            m: s.summary(len(examples), noise=noise and m not in MEAN) for m, s in scores.items()
        },
        "times": first["times"],
        "steps": torch.stack(steps).mean(dim=0).tolist(),
    }
    if answers := model.config.method.answers:
        results["answers"] = list(answers)
    if errors:
        results["calibration_error"] = sum(errors) / runs
    if alone:
        mean_alone, alone_se = _mean_and_error(alone)
        results["last_block_alone"] = {"accuracy": mean_alone, "accuracy_se": alone_se}
    if bound:
        results["elbo"] = {**bound, "total": sum(bound.values())}
    if model.method.path_weights is not None:
        results["path_weights"] = model.method.path_weights.tolist()
    return results


def check_finite(model: Trained, probabilities: Tensor) -> None:
    """Check that predictions are finite: finite weights can be so large that predictions are not.

    Raises:
        TrainingError: If they are not.
    """
    if not bool(probabilities.isfinite().all()):
        raise TrainingError(
            "the predictions of the trained model are not finite "
            f"(lr {model.config.train.lr:g}). Try a smaller train.lr in a new run"
        )


def _chunks_of_runs(
    model: Trained, examples: Examples, runs: int, modes: Collection[str], emit: Emit
) -> list[list[dict[str, Any]]]:
    """Return for each chunk of the examples one result per run; all runs share the features."""
    size = model.config.evaluation.batch_size
    seed, device, method = model.config.train.seed, model.device, model.method
    many = method.has_noise and any(m in modes for m in CHAINS)
    samples = model.config.evaluation.samples if many else 1
    needs_mean = any(m in modes for m in MEAN)
    done = _counted(emit, len(examples) * (runs * samples + needs_mean))

    def read(chunk: tuple[int, tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
        index, (x, y) = chunk
        x, y = inputs(model, x), y.to(device)
        prepared = prepare(model, x)
        still = None
        if needs_mean:
            still = method.predict(x, generator(0, "unused"), noise=False, prepared=prepared)
            done(len(y))

        def one_run(run: int) -> dict[str, Any]:
            draws = generator(seed, "inference", run, f"batch-{index}", device)
            p = method.predict(x, draws, samples=samples, prepared=prepared)
            bound = None
            if run == 0:
                with torch.autocast(device.type, torch.bfloat16, enabled=model.bf16):
                    bound = method.bound(x, y, draws, prepared=prepared)
            result = {
                "y": y,
                "times": p.times.tolist(),
                "steps": p.steps,
                "alone": method.control(draws, prepared),
                "bound": bound,
                "evaluations": p.evaluations,
            }
            done(len(y) * samples)
            return result | _guesses(method, p, still)

        # Threads divide the runs of a small part, which is a single chunk.
        return map_in_threads(one_run, range(runs), device, one_at_a_time=has_own_code(model))

    pairs = zip(examples.x.split(size), examples.y.split(size), strict=True)
    return map_in_threads(read, list(enumerate(pairs)), device, one_at_a_time=has_own_code(model))


def _guesses(method: Method, p: Prediction, still: Prediction | None) -> dict[str, Tensor]:
    """Return the probabilities of each way of predicting: of chains, and of the mean chain."""
    found = {"single": p.single, "samples": p.probabilities}
    if still is not None:
        found["mean"] = still.probabilities
    if method.path_weights is not None:
        assert p.path is not None
        weights = method.path_weights.to(p.path)
        found["path"] = p.path.mean(dim=0)
        found["path-fitted"] = torch.einsum("t,tbm->bm", weights, p.path)
        if still is not None:
            assert still.path is not None
            found["mean-path-fitted"] = torch.einsum("t,tbm->bm", weights, still.path)
    return found


def _counted(emit: Emit, total: int) -> Callable[[int], None]:
    """Return a function that adds to what is done, and emits its share; threads may call it."""
    lock, done = threading.Lock(), 0

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            emit(Evaluating(share=done / total))

    return add


def _paths(model: Trained, examples: Examples, emit: Emit) -> list[Tensor]:
    """Return the blocks' probabilities, averaged over K chains, for each chunk of the examples."""
    done = _counted(emit, len(examples))

    def read(chunk: tuple[int, Tensor]) -> Tensor:
        index, x = chunk
        draws = generator(model.config.train.seed, "weights", 0, f"batch-{index}", model.device)
        x = inputs(model, x)
        prepared = prepare(model, x)
        samples = model.config.evaluation.samples
        path = model.method.predict(x, draws, samples=samples, prepared=prepared).path
        assert path is not None
        done(len(x))
        return path

    chunks = list(enumerate(examples.x.split(model.config.evaluation.batch_size)))
    return map_in_threads(read, chunks, model.device, one_at_a_time=has_own_code(model))


def has_own_code(model: Trained) -> bool:
    """Return whether the model has a user's encoder, which may keep state or draw noise."""
    return model.config.method.has_own_code


def prepare(model: Trained, x: Tensor) -> Any:
    """Compute what all chains need of x, in the model's precision."""
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=model.bf16):
        return model.method.prepare(x)


def inputs(model: Trained, x: Tensor) -> Tensor:
    """Return raw examples normalised, on the model's device and in its memory format."""
    x = model.task.normalization.apply(x.to(model.device))
    if x.ndim == 4 and model.config.train.channels_last:
        x = channels_last(x)
    return x
