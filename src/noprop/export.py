"""A trained model as one graph, for ONNX Runtime or for ``torch.export.load``.

Two graphs: ``mean``, the mean chain with the path average where the method has one, and ``chain``,
one chain, whose noise is an input. Raw inputs go in, since normalisation is part of the graph, and
class probabilities come out; the size of a batch is free.

The chain is unrolled: the graph has the operations of every step. A long one is refused, because a
graph of a thousand steps takes minutes to make and is no faster than fewer steps.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noprop.errors import ConfigError
from noprop.files import write_whole
from noprop.methods.chains import Chains
from noprop.methods.ct import ContinuousNoProp
from noprop.methods.fm import FlowNoProp
from noprop.model import Model
from noprop.readouts import nearest_embedding_layer

__all__ = ["FORMATS", "MAX_STEPS", "ExportedChain", "Kind", "export", "onnx_difference"]

Kind = Literal["mean", "chain"]
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
MAX_STEPS = 200
# Greatest difference of a probability. That of ff by goodness is the softmax of sums in the
# thousands, of which float32 keeps three or four digits after the point.
TOLERANCE, OF_GOODNESS = 1e-5, 1e-3
EXAMPLES = 2  # of the batch that is traced; torch takes sizes 0 and 1 for constants


class ExportedChain(nn.Module):
    """Prediction as a module: from raw inputs, and noise for one chain, to probabilities (B, m).

    It runs on the CPU in float32, whatever the precision of training was.

    Args:
        model: Trained model; its weights are copied.
        kind: ``mean``, or ``chain``, whose second input is standard normal noise of shape
            (B, ``noise_shape``): z_0, and then a row for each step that draws noise.

    Attributes:
        tolerance: Greatest difference of a probability that rounding explains.

    Raises:
        ConfigError: If the chain has too many steps, steps that the data decide, or no noise.
    """

    def __init__(self, model: Model, kind: Kind):
        super().__init__()
        _check(model, kind)
        self.task, self.kind = model.task, kind
        by_goodness = getattr(model.config.method, "inference", "") == "goodness"
        self.tolerance = OF_GOODNESS if by_goodness else TOLERANCE
        self.method = method = copy.deepcopy(model.method)
        modules = [method.shared, *(unit.module for unit in method.units)]
        self.modules_of_method = nn.ModuleList(modules).cpu().float().eval()
        self.modules_of_method.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        if isinstance(method, FlowNoProp):
            end = nearest_embedding_layer(method.embedding.weight, "nearest").requires_grad_(False)
            method.end_logits = lambda z, weight: end(z)
        if isinstance(method, ContinuousNoProp):
            with torch.no_grad():
                levels = method.levels()
            vars(method)["levels"] = lambda: levels
        rows = method.num_steps if model.config.method.noise_at_every_step else 0
        self.noise_shape = (1 + rows, method.embedding.weight.shape[1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return class probabilities, shape (B, m)."""
        method, weights = self.method, self.method.path_weights
        prepared = method.prepare(self.task.normalization.apply(x))
        stretches = 0 if weights is None else len(weights)
        if noise is None:
            z = torch.zeros(x.shape[0], self.noise_shape[1])
            chains = Chains(1, method.num_steps, z, None, stretches)
        else:
            rows = iter(noise.unbind(dim=1))
            chains = Chains(1, method.num_steps, next(rows), _drawn_from(rows), stretches)
        ends, _ = method.chain(chains, prepared)
        path = chains.path
        if self.kind == "chain" or path is None or weights is None:
            return ends
        return torch.einsum("t,tbm->bm", weights.cpu(), path)

    def example(self, count: int = EXAMPLES) -> tuple[Tensor, ...]:
        """Return inputs of the kind that the model takes, for ``count`` examples."""
        draws = torch.Generator().manual_seed(0)
        shape = (count, *self.task.shape)
        if self.task.dtype == "uint8":
            x = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
        else:
            x = torch.randn(shape, generator=draws)
        if self.kind == "mean":
            return (x,)
        return x, torch.randn((count, *self.noise_shape), generator=draws)


def _drawn_from(rows: Iterator[Tensor]) -> Any:
    return lambda z: next(rows)


def _check(model: Model, kind: Kind) -> None:
    method, c = model.method, model.config.method
    if getattr(c, "sampler", "") == "dopri5":
        raise ConfigError(
            "method.sampler: dopri5 chooses its steps by the data, which a graph cannot; "
            "export with --set method.sampler=heun"
        )
    if method.num_steps > MAX_STEPS:
        hint = "; export with --set method.steps=50" if c.name in ("ct", "fm") else ""
        raise ConfigError(
            f"method.steps: a graph has every step, and at most {MAX_STEPS} of them; this chain "
            f"has {method.num_steps}{hint}"
        )
    if kind == "chain" and not method.has_noise:
        raise ConfigError(f"--chain: method {c.name} has no chain with noise")
    if kind == "chain" and getattr(c, "step", "mean") == "label":
        raise ConfigError(
            "method.step: a graph has no label steps; export with --set method.step=mean"
        )


def export(
    model: Model, path: Path | str, *, format: str = "onnx", kind: str = "mean"
) -> float | None:
    """Write a trained model as one graph.

    Args:
        model: The model.
        path: File to write or replace.
        format: ``onnx``, or ``torch`` for ``torch.export.load``.
        kind: ``mean``, or ``chain``; see above.

    Returns:
        The greatest difference of a probability between ONNX Runtime and torch, on five random
        examples; None for the format ``torch``, or if onnxruntime is not installed.

    Raises:
        ConfigError: If the format or kind is unknown, the chain cannot be a graph, an extra is
            missing, or the difference is above the module's tolerance.
    """
    if format not in FORMATS:
        raise ConfigError(f"format must be {' or '.join(FORMATS)}, got {format!r}")
    if kind not in ("mean", "chain"):
        raise ConfigError(f"kind must be mean or chain, got {kind!r}")
    if format == "onnx":
        _need("onnx", "onnxscript")
    path, module = Path(path), ExportedChain(model, kind)
    batch = torch.export.Dim("batch", min=1)
    names = ("x", "noise")[: len(module.example())]
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            module, module.example(), dynamic_shapes={name: {0: batch} for name in names}
        )
        if format == "torch":
            torch.export.save(program, path)
            return None
        made = torch.onnx.export(
            program, dynamo=True, input_names=names, output_names=["probabilities"], verbose=False
        )
    assert made is not None
    made.model.metadata_props["class_names"] = json.dumps(model.class_names)
    write_whole(path, made.model_proto.SerializeToString())
    return onnx_difference(module, path)


def onnx_difference(module: ExportedChain, path: Path) -> float | None:
    """Return the greatest difference of a probability from torch, or None without onnxruntime.

    Raises:
        ConfigError: If it is above the module's tolerance.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = module.example(5)
    fed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    (found,) = session.run(None, fed)
    with torch.no_grad():
        difference = float((torch.from_numpy(found) - module(*inputs)).abs().max())
    if not difference <= module.tolerance:
        raise ConfigError(
            f"{path}: probabilities of ONNX Runtime differ from torch's by {difference:.2g}, "
            f"wanted at most {module.tolerance:g}; do not use this file"
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch's exporter says of its own parts and of torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"format onnx needs {missing[0]}: pip install 'noprop[onnx]'")
