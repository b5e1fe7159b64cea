"""Features of images by a frozen network of timm: computed once, and kept for the next run.

So NoProp trains blocks on the output of a pretrained network. ``timm:resnet18`` has the weights
that timm publishes; ``timm:resnet18:random`` has random ones, which need no network.
"""

import hashlib
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from noprop.data.arrays import Dataset, Examples
from noprop.data.loading import search_path
from noprop.errors import DataError, RunError
from noprop.machine import choose_device
from noprop.randomness import seeded
from noprop.tensor_files import load_tensors, save_tensors

__all__ = ["features_of", "input_shape", "with_features"]

IMAGES_AT_A_TIME = 64


def with_features(dataset: Dataset, name: str) -> Dataset:
    """Return a data set of images with the features of a network in place of the pixels.

    They are kept in ``features`` of the first data folder, by a digest of the network and the
    images.

    Args:
        dataset: Images, uint8 of shape (N, C, H, W).
        name: ``timm:NAME`` or ``timm:NAME:random``.

    Raises:
        DataError: If the examples are no images, or the network cannot be had.
    """
    parts = {"train": dataset.train.x, "test": dataset.test.x}
    if dataset.train.x.dtype != torch.uint8:
        raise DataError(f"{dataset.name}: {name} reads images, and this data set has features")
    path = _cached(name, parts)
    found = _read(path, parts) if path else None
    if found is None:
        found = {part: features_of(name, x) for part, x in parts.items()}
        if path:
            with suppress(RunError, OSError):  # a folder that cannot be written: computed again
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, found, {"format": 1, "network": name})
    train, test = (Examples(found[p], e.y, e.files) for p, e in _examples(dataset).items())
    return replace(dataset, train=train, test=test)


def _examples(dataset: Dataset) -> dict[str, Examples]:
    return {"train": dataset.train, "test": dataset.test}


def _cached(name: str, parts: dict[str, Tensor]) -> Path | None:
    """Return the file of the features, which may not exist; None without a data folder."""
    folders = search_path()
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    for weight_name, weight in network(name)[0].state_dict().items():
        digest.update(weight_name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    for x in parts.values():
        digest.update(str(tuple(x.shape)).encode())
        digest.update(x.contiguous().numpy().data)
    return folders[0] / "features" / f"{digest.hexdigest()}.safetensors" if folders else None


def _read(path: Path, parts: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the features in a file; None if it does not exist or does not hold them."""
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = load_tensors(path)[0]
    except RunError:
        return None
    fits = found.keys() == parts.keys() and all(len(found[p]) == len(parts[p]) for p in parts)
    return found if fits else None


def features_of(name: str, x: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
    """Return the features of raw images, on the CPU.

    Grey images become RGB. All are resized to the size that the network was trained on.

    Args:
        name: ``timm:NAME`` or ``timm:NAME:random``.
        x: Images, in 0..255.

    Raises:
        DataError: If the network cannot be had.
    """
    net, about = network(name)
    device = choose_device("auto")
    net.to(device)
    mean, std = (torch.tensor(about[k], device=device)[:, None, None] for k in ("mean", "std"))
    size = about["input_size"][1:]
    rows = []
    with torch.no_grad():
        for part in x.split(IMAGES_AT_A_TIME):
            images = part.to(device).float() / 255
            if images.shape[1] == 1:
                images = images.expand(-1, 3, -1, -1)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
            rows.append(net((images - mean) / std).flatten(1).float().cpu())
    return torch.cat(rows) if rows else torch.empty(0, net.num_features)


def input_shape(name: str) -> tuple[int, int, int]:
    """Return the shape of the images that a network was trained on."""
    channels, height, width = network(name)[1]["input_size"]
    return channels, height, width


@lru_cache(maxsize=2)
def network(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a network without its classifier, and what timm says of its inputs.

    Raises:
        DataError: If timm cannot be imported, or has no such network or weights.
    """
    _, architecture, *random = name.split(":")
    try:
        import timm  # pyright: ignore[reportMissingImports]
        from timm.data import resolve_model_data_config  # pyright: ignore
    except ModuleNotFoundError as error:
        package = f"{error.name} is not installed"
        raise DataError(f"{name}: {package}: pip install 'noprop[timm]'") from None
    except Exception as error:  # a torchvision for another build of torch fails as it loads
        words = " ".join(str(error).split())
        raise DataError(
            f"{name}: timm cannot be imported ({words}); install the torchvision of this torch, "
            f"{torch.__version__}"
        ) from None
    try:
        with seeded(0, torch.device("cpu")):
            net = timm.create_model(architecture, pretrained=not random, num_classes=0)
    except Exception as error:  # an unknown name, or a network that is away
        words = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: cannot be had: {words}") from None
    return net.eval().requires_grad_(False), resolve_model_data_config(net)
