"""Makers of small files in the formats that the package reads."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty user cache: keeps a test away from the data folders of the user."""
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "noprop" / "data"


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], bytes]:
    """Write an array of uint8 as an idx file (not gzipped) and return the bytes."""

    def write(path: Path, array: np.ndarray) -> bytes:
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header + array.astype(np.uint8).tobytes())
        return path.read_bytes()

    return write


@pytest.fixture
def write_image() -> Callable[..., np.ndarray]:
    """Write a random image losslessly and return its pixels, (H, W) or (H, W, C)."""

    def write(path: Path, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
        shape = (height, width) if channels == 1 else (height, width, channels)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return write
