"""Single images and the inputs of a prediction."""

import io
import os
import re
import struct
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from noprop.data import images, read_inputs
from noprop.data.images import read_header, read_image, read_images
from noprop.errors import DataError
from tools import remove_package


def refused(path: Path, message: str):
    return pytest.raises(DataError, match=rf"\A{re.escape(str(path))}: .*{message}")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_colour_is_channels_first_and_exact(tmp_path, write_image):
    pixels = write_image(tmp_path / "a.png", 5, 7)
    expected = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    assert read_image(tmp_path / "a.png", None, 3).equal(expected)
    assert read_image(tmp_path / "a.png", (5, 7), 3).equal(expected)


def test_grey_becomes_colour_by_repetition_and_colour_grey_by_luma(tmp_path, write_image):
    grey = torch.from_numpy(write_image(tmp_path / "g.png", 4, 6, channels=1))
    assert read_image(tmp_path / "g.png", None, 1).equal(grey[None])
    assert read_image(tmp_path / "g.png", None, 3).equal(grey.expand(3, -1, -1))
    colour = write_image(tmp_path / "c.png", 4, 6)
    luma = torch.from_numpy(colour @ np.array([0.299, 0.587, 0.114]))  # ITU-R 601
    assert (read_image(tmp_path / "c.png", None, 1)[0] - luma).abs().max() <= 1


def test_resizing_gives_height_by_width_and_averages_when_shrinking(tmp_path, write_image):
    write_image(tmp_path / "a.png", 8, 12)
    assert read_image(tmp_path / "a.png", (3, 5), 3).shape == (3, 3, 5)
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    (tmp_path / "b.png").write_bytes(png(board))
    small = read_image(tmp_path / "b.png", (4, 4), 1).float()
    assert (small - 127.5).abs().max() < 10  # without antialiasing: black or white


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    pixels = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(png(pixels))
    assert read_header(tmp_path / "deep.png").grey
    assert read_image(tmp_path / "deep.png", None, 1)[0].tolist() == [[0, 0, 1], [128, 255, 255]]


def test_the_rotation_that_a_camera_noted_is_applied(tmp_path):
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0] = 200  # top row; orientation 6 shows it at the right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    header = read_header(tmp_path / "a.png")
    assert (header.height, header.width) == (3, 2)
    assert read_image(tmp_path / "a.png", None, 1)[0].tolist() == [[0, 200]] * 3


def test_palettes_and_transparency_become_plain_colour(tmp_path):
    colours = np.array([[[255, 0, 0, 255], [0, 0, 255, 0]]], dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    expected = torch.from_numpy(colours[..., :3].transpose(2, 0, 1).copy())
    assert read_image(tmp_path / "a.png", None, 3).equal(expected)
    palette = Image.fromarray(colours[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    assert read_image(tmp_path / "p.png", None, 3).equal(expected)


def bomb() -> bytes:
    """A PNG of a hundred bytes that claims 20000 x 20000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 100, 200)]
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
JPEG = io.BytesIO()
Image.fromarray(NOISE).save(JPEG, "jpeg")
FAULTS = {
    "empty": (b"", "file is empty"),
    "text": (b"hello, this is a text file", "not a readable image"),
    "cut png": (png(NOISE)[:5000], "truncated or damaged"),
    "cut jpeg": (JPEG.getvalue()[:2000], "truncated or damaged"),
    "flipped png": (png(NOISE)[:3000] + b"\xff" * 40 + png(NOISE)[3040:], "truncated or damaged"),
    "header only": (png(NOISE)[:20], "not a readable image"),
    "bomb": (bomb(), "too large|more than 50000000"),
    "animated": (animation(), "animated"),
}


@pytest.mark.parametrize(("data", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_no_single_whole_image_is_refused(tmp_path, data, message):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with refused(path, message):
        read_image(path, (8, 8), 3)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""


def test_an_image_starts_no_program(tmp_path, monkeypatch):
    """Pillow takes files for what their first bytes say, and starts Ghostscript for EPS."""
    sprung, path = tmp_path / "sprung", tmp_path / "a.png"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {sprung}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path.write_bytes(EPS)
    for read in (read_header, partial(read_image, size=(8, 8), channels=1)):
        with refused(path, "not a readable image of BMP, GIF, JPEG, PNG"):
            read(path)
    assert not sprung.exists()
    with suppress(OSError), Image.open(path) as image:
        image.load()
    assert sprung.exists()  # the trap does work


@pytest.mark.parametrize("kind", ["pcx", "tga", "ico", "icns", "jpeg2000", "dds", "pdf", "sgi"])
def test_formats_that_are_not_listed_are_refused(tmp_path, kind):
    path = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(path, kind)
    with refused(path, "not a readable image of BMP"):
        read_image(path, (8, 8), 3)


def test_many_blank_images_are_refused_as_a_bomb(tmp_path, monkeypatch):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for path in files:
        path.write_bytes(png(np.zeros((600, 600), np.uint8)))
    assert read_images(files, (600, 600), 1, resize=False).shape == (3, 1, 600, 600)
    monkeypatch.setattr("noprop.files.FREE_BYTES", 1 << 19)
    with refused(files[0], "more than 100 times those of the files; .*--image-size N"):
        read_images(files, (600, 600), 1, resize=False)
    assert read_images(files, (8, 8), 1).shape == (3, 1, 8, 8)


def test_only_large_images_take_turns(tmp_path, monkeypatch, write_image):
    """Photographs of a telephone, 4032x3024, are decoded at once."""
    assert images.PIXELS_DECODED_ALONE >= 4032 * 3024
    write_image(tmp_path / "a.png", 8, 8)
    turn = MagicMock()
    monkeypatch.setattr(images, "_one_large_image", turn)
    for limit, turns in ((64, 0), (63, 1)):
        monkeypatch.setattr(images, "PIXELS_DECODED_ALONE", limit)
        read_images([tmp_path / "a.png"], (4, 4), 3)
        assert turn.__enter__.call_count == turns


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_no_cut_of_a_file_ever_gives_other_pixels(tmp_path, kind):
    """Pillow forgives a missing end mark, when nothing but that mark is missing."""
    buffer, path = io.BytesIO(), tmp_path / "a"
    Image.fromarray(NOISE[:24, :24]).save(buffer, kind)
    data = buffer.getvalue()
    path.write_bytes(data)
    whole, refusals = read_image(path, None, 3), 0
    for end in [*range(0, len(data), 31), *range(len(data) - 25, len(data))]:
        path.write_bytes(data[:end])
        try:
            assert read_image(path, None, 3).equal(whole)
        except DataError:
            refusals += 1
    assert refusals >= len(data) // 31


def test_pixels_without_a_known_range_are_refused(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(path)
    with refused(path, "mode F"):
        read_image(path, None, 1)


def test_many_images_keep_their_order_and_one_fault_stops_all(tmp_path, write_image):
    files = [tmp_path / f"{i}.png" for i in range(300)]  # more than one span of a thread
    for i, path in enumerate(files):
        write_image(path, 2, 3, seed=i)
    x = read_images(files, (2, 3), 3)
    assert all(x[i].equal(read_image(path, None, 3)) for i, path in enumerate(files))
    files[280].write_bytes(b"broken")
    with refused(files[280], "not a readable image"):
        read_images(files, (2, 3), 3)


def test_another_size_is_refused_where_resizing_is_off(tmp_path, write_image):
    write_image(tmp_path / "a.png", 2, 3)
    with refused(tmp_path / "a.png", "2x3 pixels, wanted 3x2"):
        read_images([tmp_path / "a.png"], (3, 2), 3, resize=False)


def test_inputs_of_a_prediction_are_brought_to_the_models_shape(tmp_path, write_image):
    write_image(tmp_path / "big.png", 30, 20)
    grey = write_image(tmp_path / "grey.png", 8, 8, channels=1)
    batch = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
    np.savez(tmp_path / "more.npz", x=batch, y=np.array([1, 2]))
    np.save(tmp_path / "one.npy", batch[:1])
    files = [tmp_path / name for name in ("big.png", "grey.png", "more.npz", "one.npy")]
    names, x = read_inputs(files, (1, 8, 8))
    assert x.shape == (5, 1, 8, 8)
    assert x.dtype == torch.uint8
    assert x[1, 0].equal(torch.from_numpy(grey))
    assert x[2:4, 0].equal(torch.from_numpy(batch))
    more, one = str(tmp_path / "more.npz"), str(tmp_path / "one.npy")
    assert names == [*map(str, files[:2]), f"{more}[0]", f"{more}[1]", f"{one}[0]"]
    assert read_inputs(files[:2], (3, 8, 8))[1].shape == (2, 3, 8, 8)


def test_floats_in_0_to_1_are_pixels_for_a_model_of_pixels_alone(tmp_path):
    """As noprop.train(data=(x, y)) and model.predict take them."""
    pixels = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
    np.save(tmp_path / "x.npy", pixels / 255)
    x = read_inputs([tmp_path / "x.npy"], (1, 8, 8))[1]
    assert x.equal(torch.from_numpy(pixels)[:, None])
    x = read_inputs([tmp_path / "x.npy"], (8, 8), dtype="float32")[1]
    assert x.equal(torch.from_numpy(pixels).float() / 255)


def test_the_images_of_a_folder_are_predicted_with_those_of_its_subfolders(tmp_path, write_image):
    """In the order of their paths; what is no image by its name, or hidden, is not read."""
    pixels = [
        write_image(tmp_path / name, 8, 8, seed=i) for i, name in enumerate(("b.PNG", "a/c.png"))
    ]
    for name in ("notes.txt", ".hidden.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    names, x = read_inputs([tmp_path], (3, 8, 8))
    assert names == [str(tmp_path / "a/c.png"), str(tmp_path / "b.PNG")]
    for image, expected in zip(x, reversed(pixels), strict=True):
        assert image.permute(1, 2, 0).equal(torch.from_numpy(expected))


def test_the_test_part_of_arrays_is_predicted_where_there_is_no_x(tmp_path):
    parts = {"x_train": np.zeros((3, 5)), "x_test": np.ones((2, 5))}
    np.savez(tmp_path / "a.npz", **parts)  # pyright: ignore[reportArgumentType]
    names, x = read_inputs([tmp_path / "a.npz"], (5,))
    assert x.equal(torch.ones(2, 5))
    assert names == [f"{tmp_path / 'a.npz'}[0]", f"{tmp_path / 'a.npz'}[1]"]
    parts["X"] = np.zeros((3, 5))
    np.savez(tmp_path / "a.npz", **parts)  # pyright: ignore[reportArgumentType]
    assert len(read_inputs([tmp_path / "a.npz"], (5,))[1]) == 3


def test_inputs_that_do_not_fit_the_model_are_refused(tmp_path, write_image):
    image, array, keyless = (tmp_path / name for name in ("a.png", "b.npy", "c.npz"))
    write_image(image, 8, 8)
    np.save(array, np.zeros((4, 7)))
    np.savez(keyless, images=np.zeros((4, 7)))
    with refused(array, r"shape \(7,\), the model takes \(8,\)"):
        read_inputs([array], (8,))
    with refused(image, r"is no array; the model takes arrays of shape \(7,\)"):
        read_inputs([image], (7,))
    with refused(keyless, "holds images, wanted an array x or x_test"):
        read_inputs([keyless], (7,))
    with refused(tmp_path / "absent.png", "cannot be read"):
        read_inputs([tmp_path / "absent.png"], (1, 8, 8))
    with refused(tmp_path / "empty", "the folder has no image"):
        (tmp_path / "empty").mkdir()
        read_inputs([tmp_path / "empty"], (1, 8, 8))
    np.save(array, np.full((4, 1, 8, 8), 255.0))
    with refused(array, "float32 but .* holds torch.uint8"):
        read_inputs([image, array], (1, 8, 8))
    with pytest.raises(DataError, match="no file"):
        read_inputs([], (1, 8, 8))


def test_without_pillow_the_extra_is_named(tmp_path, write_image, monkeypatch):
    write_image(tmp_path / "a.png", 8, 8)
    remove_package(monkeypatch, "PIL")
    with pytest.raises(DataError, match=r"image files need Pillow: pip install 'noprop\[images\]'"):
        read_inputs([tmp_path / "a.png"], (1, 8, 8))
