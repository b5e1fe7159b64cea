"""Exported graphs: what the module computes, ONNX Runtime next to torch, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.errors import ConfigError
from noprop.export import ExportedChain, export, onnx_difference
from noprop.model import Model, empty_model, load, ready
from noprop.task import Task
from tools import rng

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

METHODS: dict[str, dict[str, Any]] = {
    "dt": {"method.num_blocks": 2},
    "dt-exact": {"method.num_blocks": 2, "method.evidence": "exact", "method.network_reads": "x"},
    "ct": {"method.steps": 3},
    "ct-heun": {"method.steps": 3, "method.sampler": "heun"},
    "ct-exact": {"method.steps": 3, "method.evidence": "exact"},
    "fm": {"method.steps": 3},
    "fm-exact": {"method.steps": 3, "method.evidence": "exact"},
    "backprop": {"method.num_blocks": 2},
    "adjoint": {"method.steps": 3},
    "greedy": {"method.num_layers": 3},
    "dfa": {"method.num_layers": 3},
    "ff": {"method.width": 30},
    "dtp": {"method.num_layers": 3, "method.width": 12},
    "lg-fg-a": {"method.num_blocks": 2, "method.side": 2, "method.width": 32, "method.groups": 4},
}
STACKS = ("greedy", "dfa", "ff", "dtp", "lg-fg-a")
WITH_NOISE = [name for name in METHODS if name not in STACKS]


def made(name: str, shape: tuple[int, ...] = (1, 8, 8), **changes: Any) -> Model:
    """An untrained model whose batch norms, readout and path weights are not those of the start."""
    settings = {"train.precision": "float32", "train.device": "cpu", **METHODS[name], **changes}
    named = name if name in STACKS else name.partition("-")[0]
    config = replace(RunConfig(), {"method.name": named, **settings})
    dtype = "uint8" if len(shape) == 3 else "float32"
    normalization = Normalization((0.3,) * shape[0], (0.4,) * shape[0])
    model = empty_model(config, Task(shape, tuple("0123456789"), normalization, dtype))
    for unit in model.method.units:
        for tensor in unit.module.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim:
                tensor += 0.02 * torch.randn(tensor.shape, generator=rng(1))
    if model.method.path_weights is not None:
        model.method.path_weights = torch.arange(1.0, len(model.method.path_weights) + 1)
        model.method.path_weights /= model.method.path_weights.sum()
    ready(model)
    return model


def answer(path: Path, *inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    return torch.from_numpy(found)


@pytest.mark.parametrize("name", METHODS)
def test_the_mean_graph_is_predict_without_noise(name):
    """From raw images, whatever their number; its copy leaves the model as it was."""
    model = made(name)
    module = ExportedChain(model, "mean")
    (x,) = module.example(7)
    wanted = model.predict(x, noise=False)
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-6)
    assert torch.equal(model.predict(x, noise=False), wanted)
    assert wanted.std(dim=0).max() > 1e-4  # it depends on x


@pytest.mark.parametrize("name", WITH_NOISE)
def test_the_chain_graph_is_one_chain_with_that_noise(name):
    """The generator's own draws, in their order, give the probabilities of ``predict``."""
    model = made(name)
    module = ExportedChain(model, "chain")
    x, _ = module.example(7)
    rows, dim = module.noise_shape
    assert rows == (
        1 + model.method.num_steps if name in ("dt", "dt-exact", "ct", "ct-exact") else 1
    )
    draws = rng(3)
    noise = torch.stack([torch.empty(7, dim).normal_(generator=draws) for _ in range(rows)], 1)
    normal = model.task.normalization.apply(x)
    wanted = model.method.predict(normal, rng(3), average="readout").probabilities
    torch.testing.assert_close(module(x, noise), wanted, rtol=0, atol=1e-6)


def test_onnx_runtime_predicts_the_same(trained_run, tmp_path, capsys):
    """A trained run through the command: to 1e-5 for batches of 1 and 7, and the classes' names."""
    out = tmp_path / "m.onnx"
    run = trained_run("digits-dt")
    capsys.readouterr()
    wanted = ["export", str(run), "--device=cpu", f"--out={out}", "--json"]
    assert main(wanted) == 0
    assert json.loads(capsys.readouterr().out)["difference"] < 1e-5
    module = ExportedChain(load(run, device="cpu"), "mean")
    for count in (1, 7):
        (x,) = module.example(count)
        torch.testing.assert_close(answer(out, x), module(x), rtol=0, atol=1e-5)
    with torch.no_grad():
        next(module.parameters()).add_(1e-3)  # a graph that differs is reported
    with pytest.raises(ConfigError, match=r"differ from torch's by \d.*do not use this file"):
        onnx_difference(module, out)
    metadata = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list("0123456789")


def test_probabilities_of_goodness_alone_have_fewer_digits():
    """A graph that differs from torch by more than rounding does is an error, and no other."""
    softmax: dict[str, Any] = {"method.inference": "softmax"}
    models = [made("ff"), made("ff", **softmax), made("dtp")]
    assert [ExportedChain(m, "mean").tolerance for m in models] == [1e-3, 1e-5, 1e-5]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "chain"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_onnx_runtime_and_torch_export(name, kind, tmp_path):
    """Also Fig. 5's convolutions, for dt, and ff on MNIST, whose sums of squares are thousands."""
    if kind == "chain" and name not in WITH_NOISE:
        pytest.skip(f"{name} has no noise")
    shape = (1, 28, 28) if name in ("dt", "ff") else (1, 8, 8)
    changes: dict[str, Any] = {"method.width": 1000} if name == "ff" else {}
    model = made(name, shape, **changes)
    module = ExportedChain(model, kind)
    export(model, tmp_path / "m.onnx", kind=kind)
    export(model, tmp_path / "m.pt2", format="torch", kind=kind)
    program = torch.export.load(tmp_path / "m.pt2").module()
    for count in (1, 7):
        inputs = module.example(count)
        wanted = module(*inputs)
        for found in (answer(tmp_path / "m.onnx", *inputs), program(*inputs)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=module.tolerance)


@pytest.mark.slow
def test_a_chain_that_keeps_not_every_level_is_exported(tmp_path):
    """One of 41 steps keeps 21 levels of 42."""
    model = made("ct", (1, 8, 8), **{"method.steps": 41})
    export(model, tmp_path / "m.pt2", format="torch")
    (x,) = ExportedChain(model, "mean").example(7)
    program = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(program(x), model.predict(x, noise=False), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "kind", "words"),
    [
        ("ct", {"method.steps": 1000}, "mean", "at most 200 .* has 1000; export with --set"),
        ("adjoint", {"method.steps": 1000}, "mean", "at most 200 of them; this chain has 1000$"),
        ("fm", {"method.sampler": "dopri5"}, "mean", "dopri5 chooses its steps"),
        ("dt", {"method.step": "label"}, "chain", "no label steps"),
        ("greedy", {}, "chain", "greedy has no chain with noise"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(name, changes, kind, words):
    with pytest.raises(ConfigError, match=words):
        ExportedChain(made(name, **changes), kind)


def test_an_unknown_format_or_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="format must be onnx or torch, got 'tflite'"):
        export(made("dt"), tmp_path / "m", format="tflite")
    with pytest.raises(ConfigError, match="kind must be mean or chain, got 'both'"):
        export(made("dt"), tmp_path / "m", kind="both")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="format must be onnx or torch, got 'tflite'"):
        export(made("dt"), tmp_path / "m", format="tflite")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnx: pip install 'noprop\[onnx\]'"):
        export(made("dt"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
