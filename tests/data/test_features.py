"""Features of a frozen network: a stand-in for timm, whose network is small, and timm itself."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import noprop
from mistakes import FAST, line_of_error
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.data import load_dataset
from noprop.data.features import features_of, input_shape, network, with_features
from noprop.errors import ConfigError, DataError
from noprop.task import load_data

RANDOM = "timm:tiny:random"
ABOUT = {"input_size": (3, 12, 10), "mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 2.0)}


class Net(nn.Module):
    """Mean of each channel, and the same through random weights."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.seen: list[torch.Size] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape)
        means = x.mean(dim=(2, 3))
        return torch.cat([means, self.layer(means)], dim=1)


@pytest.fixture
def timm(monkeypatch, tmp_path):
    """A package timm with one network; features are kept in a folder of the test."""
    made: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> Net:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        made.append(options)
        return Net()

    data = SimpleNamespace(resolve_model_data_config=lambda net: ABOUT)
    package = SimpleNamespace(create_model=create_model, data=data, made=made)
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    monkeypatch.setenv("NOPROP_DATA", str(tmp_path / "cache"))
    network.cache_clear()
    yield package
    network.cache_clear()


def test_images_become_what_the_network_was_trained_on(timm):
    """Grey images in three channels, of its size, with its mean and deviation."""
    x = torch.full((3, 1, 8, 8), 51, dtype=torch.uint8)
    found = features_of(RANDOM, x)
    assert found.shape == (3, 6)
    torch.testing.assert_close(found[0, :3], torch.tensor([-0.6, -0.2, 0.1]))
    assert network(RANDOM)[0].seen == [(3, 3, 12, 10)]
    assert input_shape(RANDOM) == (3, 12, 10)
    assert len(features_of(RANDOM, x[:0])) == 0


def test_random_weights_are_the_same_every_time(timm):
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    first = features_of(RANDOM, x)
    network.cache_clear()
    assert torch.equal(features_of(RANDOM, x), first)
    assert not any(p.requires_grad for p in network(RANDOM)[0].parameters())
    assert not network(RANDOM)[0].training  # dropout and batch statistics are of training
    features_of("timm:tiny", x)
    assert [options["pretrained"] for options in timm.made] == [False, False, True]


def test_features_are_computed_once(timm, tmp_path, monkeypatch):
    dataset = load_dataset("digits")
    first = with_features(dataset, RANDOM)
    calls = len(network(RANDOM)[0].seen)
    again = with_features(dataset, RANDOM)
    assert len(network(RANDOM)[0].seen) == calls
    for part in ("train", "test"):
        assert torch.equal(getattr(first, part).x, getattr(again, part).x)
        assert torch.equal(getattr(first, part).y, getattr(dataset, part).y)
        assert torch.equal(getattr(again, part).x, features_of(RANDOM, getattr(dataset, part).x))


def test_other_weights_and_other_images_are_computed_again(timm, tmp_path):
    dataset = load_dataset("digits")
    with_features(dataset, RANDOM)
    with torch.no_grad():
        network(RANDOM)[0].layer.bias += 1
    changed = with_features(dataset, RANDOM)
    assert torch.equal(changed.test.x, features_of(RANDOM, dataset.test.x))
    dataset.test.x[0] = 255 - dataset.test.x[0]
    assert torch.equal(with_features(dataset, RANDOM).test.x, features_of(RANDOM, dataset.test.x))
    assert len(list((tmp_path / "cache/features").iterdir())) == 3


def test_a_damaged_file_is_computed_again(timm, tmp_path):
    dataset = load_dataset("digits")
    first = with_features(dataset, RANDOM)
    (file,) = (tmp_path / "cache/features").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert torch.equal(with_features(dataset, RANDOM).train.x, first.train.x)


def test_a_run_on_features_predicts_images(timm, tmp_path, monkeypatch, capsys):
    """From pixels the same as from their features; the command reads image files of any size."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--encoder", RANDOM, *FAST, "--run", "run"]) == 0
    model = noprop.load("run")
    assert model.task.shape == (6,)
    images = load_dataset("digits").test.x[:5]
    wanted = model.predict(features_of(RANDOM, images))
    assert torch.equal(model.predict(images), wanted)
    assert torch.equal(model.predict(images.numpy().astype(np.float32) / 255), wanted)
    Image.new("RGB", (30, 20), "red").save("red.png")
    capsys.readouterr()
    assert main(["predict", "run", "red.png", "--json"]) == 0
    assert main(["evaluate", "run"]) == 0
    with pytest.raises(ConfigError, match="only images are augmented"):
        noprop.train("digits-dt", overrides={"data.features": RANDOM, "train.flip": True})


@pytest.mark.parametrize("name", ["timm:hf-hub:me/evil", "timm:../x", "os:system", "timm:a:b"])
def test_a_configuration_names_no_file_and_no_code(name):
    with pytest.raises(ConfigError, match=r"data\.features"):
        replace(RunConfig(), {"data.features": name})


def test_what_cannot_be_had_is_one_line(timm, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Unknown model (huge)" in line_of_error(capsys, "train", "--encoder", "timm:huge")
    np.savez("table.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    words = "reads images, and this data set has features"
    assert words in line_of_error(capsys, "train", "--dataset", "table.npz", "--encoder", RANDOM)
    monkeypatch.setitem(sys.modules, "timm", None)
    network.cache_clear()
    assert "pip install 'noprop[timm]'" in line_of_error(capsys, "train", "--encoder", RANDOM)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.npz"]


def test_a_torchvision_of_another_torch_is_named(monkeypatch, tmp_path):
    """It fails as it is imported, which timm does."""
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "timm.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    network.cache_clear()
    with pytest.raises(DataError, match=r"torchvision::nms.*install the torchvision of this torch"):
        network(RANDOM)


@pytest.mark.slow
def test_timm_itself(monkeypatch, tmp_path):
    """One of its test networks, with random weights."""
    try:
        import timm as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        pytest.skip("timm is not installed: pip install 'noprop[timm]'")
    except RuntimeError as error:
        pytest.skip(f"timm cannot be imported: {error}")
    monkeypatch.setenv("NOPROP_DATA", str(tmp_path))
    network.cache_clear()
    config = replace(RunConfig(), {"data.features": "timm:test_resnet:random"})
    data = load_data(config)
    size = package.create_model("test_resnet", pretrained=False, num_classes=0).num_features
    assert data.task.shape == (size,)
    assert torch.isfinite(data.train.x).all()
    assert data.train.x.std(dim=0).min() > 0
