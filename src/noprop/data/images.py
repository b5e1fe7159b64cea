"""Image files: headers, one image, and many.

Every image ends as uint8 (C, H, W), grey (C = 1) or colour (C = 3). A rotation in its EXIF data is
applied, transparency is dropped, and resizing is to exactly the size asked for (bilinear,
antialiased when shrinking; the aspect ratio is not kept).
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from noprop.data.formats import open_data
from noprop.errors import DataError, import_extra
from noprop.files import RATIO, may_unpack

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageHeader",
    "read_header",
    "read_image",
    "read_images",
]

# What Pillow may take a file for, whatever its name. Of the others some start a program: EPS starts
# Ghostscript. JPEG has MPO in it, PPM has PBM and PGM.
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split())
MAX_PIXELS = 50_000_000  # a few kilobytes can claim to be gigapixels; no photograph is larger
# Decoding takes some 12 bytes a pixel, so larger ones take turns; photographs of 4032x3024 do not.
PIXELS_DECODED_ALONE = 12_500_000
GREY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
ROTATED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
ORIENTATION_TAG = 0x0112
FILES_AT_A_TIME = 128  # files a thread decodes before it takes the next ones


_one_large_image = threading.Lock()


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file. Sizes are in pixels, as displayed."""

    height: int
    width: int
    grey: bool


def read_header(path: Path) -> ImageHeader:
    """Return the size and kind of an image file without decoding its pixels.

    Raises:
        DataError: If the file is not an image, is damaged or animated, or has more than 50 million
            pixels.
    """
    with _open(path) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(ORIENTATION_TAG)
        except Exception as error:  # a PNG may note it behind its pixels; see read_image
            raise DataError(f"{path}: truncated or damaged image: {error}") from error
        if orientation in ROTATED_ORIENTATIONS:
            width, height = height, width
        return ImageHeader(height, width, image.mode in GREY_MODES)


def read_image(
    path: Path, size: tuple[int, int] | None, channels: int
) -> UInt8[Tensor, "channels height width"]:
    """Decode one image file whole.

    Args:
        path: The file, in one of the formats BMP, GIF, JPEG, PNG, PPM, TIFF and WebP.
        size: (height, width) to resize to; None keeps the file's own.
        channels: 1 for grey (colours weighed as ITU-R 601 luma), 3 for RGB (grey is repeated).

    Raises:
        DataError: If the file is missing, empty, damaged, animated, too large or no image.
    """
    pillow = _pillow()
    from PIL import ImageOps

    with _open(path) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # convert() would clip 16 bits to 8, not scale them
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                image = pillow.fromarray(grey)
            elif image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode} have no known range")
            elif image.mode == "P":  # a palette may hold transparency that RGB cannot
                image = image.convert("RGBA")
            image = image.convert("L" if channels == 1 else "RGB")
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image))
        except (
            Exception
        ) as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
            raise DataError(f"{path}: truncated or damaged image: {error}") from error
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def read_images(
    files: Sequence[Path], size: tuple[int, int], channels: int, *, resize: bool = True
) -> UInt8[Tensor, "n channels height width"]:
    """Decode many files, in threads (Pillow decodes outside the interpreter's lock).

    Args:
        files: The files, at least one.
        size: (height, width) of the result.
        channels: 1 or 3.
        resize: Whether to resize files of another size; otherwise they are an error.

    Raises:
        DataError: As :func:`read_image`, or if all of them need more memory than there is. Where
            ``resize`` is off, also if they need more than :func:`~noprop.files.may_unpack` allows,
            or one has another size.
    """
    total = len(files) * channels * size[0] * size[1]
    if not resize and not may_unpack(total, sum(path.stat().st_size for path in files)):
        raise DataError(
            f"{files[0]}: {len(files)} images of {size[0]}x{size[1]} pixels are {total} bytes, "
            f"more than {RATIO} times those of the files; resize them with --image-size N"
        )
    try:
        images = torch.empty(len(files), channels, *size, dtype=torch.uint8)
    except RuntimeError as error:
        raise DataError(
            f"{files[0]}: {len(files)} images of {size[0]}x{size[1]} pixels are {total} bytes, "
            f"more than this machine's memory"
        ) from error

    def decode(start: int) -> None:
        for i in range(start, min(start + FILES_AT_A_TIME, len(files))):
            image = read_image(files[i], size if resize else None, channels)
            if tuple(image.shape[1:]) != size:
                raise DataError(
                    f"{files[i]}: is {image.shape[1]}x{image.shape[2]} pixels, "
                    f"wanted {size[0]}x{size[1]} (height x width)"
                )
            images[i] = image

    _pillow()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        tasks = [pool.submit(decode, start) for start in range(0, len(files), FILES_AT_A_TIME)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


@contextmanager
def _open(path: Path) -> "Iterator[Image]":
    """Open an image without decoding it; see :func:`read_header` for errors."""
    pillow = _pillow()
    with open_data(path) as file, ExitStack() as stack:
        try:
            image = stack.enter_context(pillow.open(file, formats=PILLOW_FORMATS))
        except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
            raise DataError(f"{path}: too large an image: {error}") from error
        except pillow.UnidentifiedImageError as error:
            known = ", ".join(PILLOW_FORMATS)
            raise DataError(f"{path}: not a readable image of {known}") from error
        except Exception as error:  # as in read_image
            raise DataError(f"{path}: not a readable image: {error}") from error
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise DataError(
                f"{path}: {image.width}x{image.height} pixels are more than {MAX_PIXELS}"
            )
        # Cameras store previews as further frames of an MPO, a JPEG with extra pictures behind it.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise DataError(f"{path}: it is animated or has several pages; give one image per file")
        with _one_large_image if pixels > PIXELS_DECODED_ALONE else nullcontext():
            yield image


def _pillow() -> ModuleType:
    return import_extra("PIL.Image", "images", "image files need", DataError)
