"""idx, CIFAR and NumPy files: read to the last byte, or refused with the file's name."""

import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from noprop.data.formats import read_cifar, read_idx
from noprop.data.numpy_files import array_names, read_arrays, read_npz
from noprop.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 3, 4), dtype=np.uint8)


def refused(path: Path, message: str):
    """The next block must raise one line that begins with the file and holds ``message``."""
    return pytest.raises(DataError, match=rf"\A{re.escape(str(path))}: [^\n]*{message}[^\n]*\Z")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_idx_gives_back_what_was_written(tmp_path, write_idx, compress):
    path = tmp_path / "images"
    path.write_bytes(compress(write_idx(path, IMAGES)))
    assert read_idx(path, dims=3).equal(torch.from_numpy(IMAGES))


IDX_DAMAGE = {
    "empty": (lambda data: b"", "file is empty"),
    "short": (lambda data: data[:-1], "60 bytes, but 59 follow"),
    "long": (lambda data: data + b"\0", "60 bytes, but 61 follow"),
    "header cut": (lambda data: data[:10], "ends within its idx header"),
    "magic cut": (lambda data: data[:2], "not an idx file"),
    "wrong magic": (lambda data: b"\x89PNG" + data[4:], "not an idx file"),
    "wrong type": (lambda data: data[:2] + b"\x0d" + data[3:], "type 0x0d"),
    "no example": (lambda data: data[:4] + bytes(4) + data[8:16], "holds no data"),
    "gzip cut": (lambda data: gzip.compress(data)[:-10], "gzip"),
    "gzip tail cut": (lambda data: gzip.compress(data)[:-1], "gzip"),
    "gzip flipped": (lambda data: flip_byte(gzip.compress(data, mtime=0), 30), "gzip"),
    "gzip followed": (lambda data: gzip.compress(data) + b"junk", "gzip"),
}


def flip_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(("damage", "message"), IDX_DAMAGE.values(), ids=IDX_DAMAGE.keys())
def test_damaged_idx_is_refused(tmp_path, write_idx, damage, message):
    path = tmp_path / "images"
    path.write_bytes(damage(write_idx(path, IMAGES)))
    with refused(path, message):
        read_idx(path, dims=3)


def test_labels_given_as_images_are_refused(tmp_path, write_idx):
    path = tmp_path / "labels"
    write_idx(path, np.arange(9))
    with refused(path, "holds 1-dimensional .* wanted 3 .* exchanged"):
        read_idx(path, dims=3)


def test_a_missing_file_is_named(tmp_path):
    with refused(tmp_path / "absent", "cannot be read: No such file"):
        read_idx(tmp_path / "absent", dims=3)


def cifar_records(labels: np.ndarray, pixels: np.ndarray) -> bytes:
    return np.concatenate([labels, pixels.reshape(len(pixels), -1)], 1).astype(np.uint8).tobytes()


CIFAR_PIXELS = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


def test_cifar_gives_back_pixels_and_the_last_label(tmp_path):
    path = tmp_path / "train.bin"
    coarse, fine = np.array([0, 19, 3, 4]), np.array([99, 0, 50, 7])
    path.write_bytes(cifar_records(np.stack([coarse, fine], 1), CIFAR_PIXELS))
    x, y = read_cifar(path, (20, 100), records=4)
    assert x.equal(torch.from_numpy(CIFAR_PIXELS))
    assert y.tolist() == fine.tolist()
    path.write_bytes(cifar_records(np.array([[9], [0], [1], [2]]), CIFAR_PIXELS))
    x, y = read_cifar(path, (10,))
    assert x.equal(torch.from_numpy(CIFAR_PIXELS))
    assert y.tolist() == [9, 0, 1, 2]


CIFAR_DAMAGE = {
    "empty": (lambda data: b"", "file is empty"),
    "cut within a record": (lambda data: data[:-1], "not whole records of 3073"),
    "cut between records": (lambda data: data[: 3 * 3073], "holds 3 records, wanted 4"),
    "one too many": (lambda data: data + data[:3073], "holds 5 records, wanted 4"),
    "label out of range": (lambda data: b"\x0a" + data[1:], r"a label is 10, wanted 0\.\.9"),
    "of CIFAR-100": (lambda data: b"".join([b"\0", data[:3073]] * 4), "not whole records of 3073"),
}


@pytest.mark.parametrize(("damage", "message"), CIFAR_DAMAGE.values(), ids=CIFAR_DAMAGE.keys())
def test_damaged_cifar_is_refused(tmp_path, damage, message):
    path = tmp_path / "batch.bin"
    path.write_bytes(damage(cifar_records(np.array([[9], [0], [1], [2]]), CIFAR_PIXELS)))
    with refused(path, message):
        read_cifar(path, (10,), records=4)


def test_a_coarse_label_out_of_range_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(cifar_records(np.array([[20, 0]] * 4), CIFAR_PIXELS))
    with refused(path, "a label is 20, wanted 0..19"):
        read_cifar(path, (20, 100))


def save(path: Path, **arrays: object) -> Path:
    named = {key: np.asarray(value) for key, value in arrays.items()}
    np.savez(path, **named)  # pyright: ignore[reportArgumentType]
    return path


LABELS = np.arange(20) % 4


def test_npz_with_parts_keeps_them(tmp_path):
    x = RNG.normal(size=(20, 6))
    path = save(tmp_path / "a.npz", x_train=x, y_train=LABELS, x_test=-x[:5], y_test=LABELS[:5])
    dataset = read_npz(path)
    assert dataset.train.x.equal(torch.from_numpy(x).float())
    assert dataset.test.x.equal(-torch.from_numpy(x[:5]).float())
    assert dataset.test.y.tolist() == LABELS[:5].tolist()
    assert (dataset.shape, dataset.class_names) == ((6,), ("0", "1", "2", "3"))


def test_npz_without_a_test_part_gives_one_fifth_and_the_same_one(tmp_path):
    x = np.arange(20, dtype=np.float32)[:, None]
    dataset = read_npz(save(tmp_path / "a.npz", x=x, y=LABELS))
    again = read_npz(save(tmp_path / "b.npz", x=x, y=LABELS))
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert dataset.test.x.equal(again.test.x)
    both = torch.cat([dataset.train.x, dataset.test.x])[:, 0]
    assert both.sort().values.tolist() == list(range(20))


PIXELS = RNG.integers(0, 256, (20, 3, 6, 5), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS.transpose(0, 2, 3, 1), PIXELS),
        (PIXELS[:, :1].transpose(0, 2, 3, 1), PIXELS[:, :1]),
        (PIXELS[:, 0], PIXELS[:, :1]),
        (PIXELS[:, :, ::-1], PIXELS[:, :, ::-1].copy()),
    ],
    ids=["NCHW", "NHWC", "NHW1", "NHW", "negative strides"],
)
def test_image_layouts_end_as_channels_first(tmp_path, array, expected):
    dataset = read_npz(
        save(tmp_path / "a.npz", x_train=array, y_train=LABELS, x_test=array, y_test=LABELS)
    )
    assert dataset.train.x.dtype == torch.uint8
    assert dataset.train.x.equal(torch.from_numpy(expected))


@pytest.mark.parametrize("kind", [">f8", "<f2", ">i2", "<f8", "=f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_byte_order_and_layout_are_read(tmp_path, kind, order):
    x = np.arange(120).reshape(20, 6)
    for way in (1, -1):
        stored = np.asarray(x, dtype=kind, order=order)[::way]
        dataset = read_npz(
            save(
                tmp_path / "a.npz",
                x_train=stored,
                y_train=LABELS.astype(">i4"),
                x_test=stored,
                y_test=LABELS,
            )
        )
        assert dataset.train.x.equal(torch.from_numpy(x[::way].copy()).float())
        assert dataset.train.y.tolist() == LABELS.tolist()


def test_rows_of_bytes_are_features(tmp_path):
    flat = PIXELS.reshape(20, -1)
    dataset = read_npz(
        save(tmp_path / "a.npz", x_train=flat, y_train=LABELS, x_test=flat, y_test=LABELS)
    )
    assert dataset.train.x.equal(torch.from_numpy(flat).float())


GOOD_X = RNG.normal(size=(20, 6))
WORDS = np.array(["cat", "bee", "dog", "emu"])[LABELS]
NOT_A_NUMBER = np.where(np.arange(120).reshape(20, 6) == 77, np.nan, GOOD_X)
NPZ_FAULTS = {
    "NaN": ({"x": NOT_A_NUMBER, "y": LABELS}, "x holds a NaN"),
    "infinite": ({"x": np.full((20, 6), np.inf), "y": LABELS}, "NaN or"),
    "too large": ({"x": GOOD_X * 1e300, "y": LABELS}, "infinite in float32"),
    "no example": ({"x": GOOD_X[:0], "y": LABELS[:0]}, "not empty"),
    "no axis": ({"x": GOOD_X[:, 0], "y": LABELS}, r"wanted \(N, \.\.\.\)"),
    "text": ({"x": GOOD_X.astype(str), "y": LABELS}, "wanted numbers"),
    "complex": ({"x": GOOD_X * 1j, "y": LABELS}, "wanted numbers"),
    "float labels": ({"x": GOOD_X, "y": LABELS + 0.5}, "y has the label 0.5, wanted whole"),
    "column of labels": ({"x": GOOD_X, "y": LABELS[:, None]}, r"shape \(20, 1\)"),
    "fewer labels": ({"x": GOOD_X, "y": LABELS[:-1]}, "x has 20 examples but y has 19"),
    "single class": ({"x": GOOD_X, "y": LABELS * 0}, "has 1 class, wanted 2"),
    "too many classes": (
        {"x": np.zeros((20_002, 1)), "y": np.arange(20_002) // 2},
        "y has 10001 different labels, w",
    ),
    "objects": ({"x": GOOD_X.astype(object), "y": LABELS}, "type object, wanted numbers"),
    "absent class": (
        {"x": GOOD_X, "y": LABELS, "class_names": list("abcde")},
        r"class 4 \(e\) has no training example",
    ),
    "NaN label": ({"x": GOOD_X, "y": np.where(LABELS == 2, np.nan, LABELS)}, "label nan, wanted"),
    "infinite label": ({"x": GOOD_X, "y": np.where(LABELS == 2, np.inf, 1)}, "label inf, wanted"),
    "label of no digits": ({"x": GOOD_X, "y": LABELS * 1e300}, "label 1e.300, wanted whole"),
    "complex labels": ({"x": GOOD_X, "y": LABELS * 1j}, "y is complex128 of shape"),
    "too few names": (
        {"x": GOOD_X, "y": LABELS, "class_names": ["a", "b"]},
        "class_names has 2 names, but y has 4 different labels from 0 to 3",
    ),
    "names that are none": ({"x": GOOD_X, "y": LABELS, "class_names": LABELS[:4]}, "wanted text"),
    "a name twice": ({"x": GOOD_X, "y": LABELS, "class_names": list("abca")}, "has a name twice"),
    "a label without a name": (
        {"x": GOOD_X, "y": WORDS, "class_names": ["cat", "dog", "emu"]},
        "y has the label 'bee', which is not in class_names: cat, dog, emu",
    ),
    "a label of bytes": ({"x": GOOD_X, "y": WORDS.astype("S") + b"\xff"}, "that is no valid text"),
    "a lone surrogate": (
        {"x": GOOD_X, "y": np.where(LABELS == 1, "\ud800", "a")},
        "that is no valid text",
    ),
    "text of no length": ({"x": GOOD_X, "y": np.zeros(20, "U0")}, "1 class"),
    "no labels": ({"x": GOOD_X}, "holds the arrays x; wanted x and y"),
    "other names": ({"inputs": GOOD_X, "y": LABELS}, "holds the arrays inputs, y; wanted x"),
    "half a part": ({"x_train": GOOD_X, "y_train": LABELS, "x_test": GOOD_X}, "wanted x and y, or"),
    "ambiguous": ({"x": np.zeros((20, 3, 5, 1), np.uint8), "y": LABELS}, "exactly one of axis 1"),
    "four channels": ({"x": np.zeros((20, 5, 5, 4), np.uint8), "y": LABELS}, "exactly one of"),
    "unlike parts": (
        {"x_train": GOOD_X, "y_train": LABELS, "x_test": GOOD_X[:, 1:], "y_test": LABELS},
        r"float32 \(6,\) but test examples are float32 \(5,\)",
    ),
    "unknown test class": (
        {"x_train": GOOD_X, "y_train": LABELS, "x_test": GOOD_X, "y_test": LABELS + 1},
        "y_test has the label 4, which is none of the training classes 0, 1, 2, 3",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), NPZ_FAULTS.values(), ids=NPZ_FAULTS.keys())
def test_arrays_that_are_no_data_set_are_refused(tmp_path, arrays, message):
    path = save(tmp_path / "a.npz", **arrays)
    with refused(path, message):
        read_npz(path)


@pytest.mark.parametrize(
    ("labels", "named", "codes", "names"),
    [
        (LABELS, None, LABELS, "0 1 2 3"),
        (LABELS.astype("f4"), None, LABELS, "0 1 2 3"),
        (LABELS + 1, None, LABELS, "1 2 3 4"),
        (LABELS.astype(">i2") - 2, None, LABELS, "-2 -1 0 1"),
        (10 - 3.0 * LABELS, None, 3 - LABELS, "1 4 7 10"),
        (
            LABELS.astype("u8") + (2**64 - 4),
            None,
            LABELS,
            " ".join(f"{2**64 - 4 + i}" for i in range(4)),
        ),
        (LABELS > 1, None, LABELS // 2, "False True"),
        (WORDS, None, np.array([1, 0, 2, 3])[LABELS], "bee cat dog emu"),
        (WORDS.astype("S"), None, np.array([1, 0, 2, 3])[LABELS], "bee cat dog emu"),
        (LABELS, ["zoo", "emu", "cat", "dog"], LABELS, "zoo emu cat dog"),
        (LABELS + 1, ["zoo", "emu", "cat", "dog"], LABELS, "zoo emu cat dog"),
        (WORDS, ["emu", "dog", "cat", "bee"], np.array([2, 3, 1, 0])[LABELS], "emu dog cat bee"),
    ],
)
def test_labels_of_any_kind_become_0_to_m(tmp_path, labels, named, codes, names):
    """In the training part and in the test part, which need not have every class."""
    names_too = {} if named is None else {"class_names": named}
    few = labels[LABELS % 3 == 0]
    path = save(
        tmp_path / "a.npz", X_train=GOOD_X, y_train=labels, X_test=GOOD_X[: len(few)], y_test=few,
        **names_too,
    )  # fmt: skip
    dataset = read_npz(path)
    assert dataset.class_names == tuple(names.split())
    assert dataset.train.y.tolist() == codes.tolist()
    assert dataset.test.y.tolist() == codes[LABELS % 3 == 0].tolist()


@pytest.mark.parametrize("x", ["x", "X", "data"])
@pytest.mark.parametrize("y", ["y", "labels", "target"])
def test_usual_names_of_arrays_are_read(tmp_path, x, y):
    """The first of each counts, and the others are not read: these have another length."""
    later = {"data": np.zeros((1, 1)), "target": np.zeros(1)}
    dataset = read_npz(save(tmp_path / "a.npz", **{**later, x: GOOD_X, y: LABELS}))
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (16, 4, 4)


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=GOOD_X, y=LABELS)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """An npy file with this header."""
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


def header(shape: object, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def zipped(x: bytes, y: bytes, method: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    """An npz file with these members, whatever they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in {"x": x, "y": y, **others}.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


Y = npy(header("(20,)", "<i8"), np.arange(20).tobytes())
TEN_TERABYTES = npy(header("(1_250_000_000_000,)"), bytes(800))
BOMBS = {
    "npy that claims 10 TB": (TEN_TERABYTES, "800 bytes follow"),
    "member that claims 10 TB": (zipped(x=TEN_TERABYTES, y=Y), "800 bytes follow"),
    "shape beyond int64": (zipped(x=npy(header((10**30, 10**30))), y=Y), "0 bytes follow"),
    "shape of thousands of digits": (
        zipped(x=npy(header(f"({'9' * 4000}, {'9' * 4000})")), y=Y),
        "0 bytes follow",
    ),
    "negative shape": (zipped(x=npy(header((-1, -8)), bytes(64)), y=Y), r"\(-1, -8\), but 64"),
    "header that claims 4 GB": (npy("{" * 100, version=b"\2\0"), "not a readable NumPy file"),
    "header nested deeply": (npy(header("(" * 9000)), "not a readable NumPy file"),
    "member without a header": (zipped(x=b"just text", y=Y), "not a readable NumPy file"),
    "empty member": (zipped(x=b"", y=Y), "not a readable NumPy file"),
    "longer than it says": (npy(header((4, 2)), bytes(72)), "but 72 bytes follow"),
    "method without a limit": (zipped(Y, Y, zipfile.ZIP_LZMA), "neither stored nor deflated"),
}


@pytest.mark.parametrize(("data", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_what_an_array_claims_is_compared_with_what_the_file_has(tmp_path, data, message):
    """Before memory is taken for it: numpy.load would ask for all that a header claims."""
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with refused(path, message):
        read_arrays(path, array_names(path))


WITHIN_2_GB = """
import resource, sys
from noprop.cli import main
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
sys.exit(sum(main(["train", "--quiet", "--dataset", name]) for name in sys.argv[1:]))
"""


def test_bombs_are_one_line_each_within_two_gigabytes(tmp_path):
    """Of addresses, libraries among them: more than ever is in memory."""
    path = tmp_path / "claims.npz"
    path.write_bytes(zipped(x=TEN_TERABYTES, y=Y))
    blank = tmp_path / "blank.npz"
    with zipfile.ZipFile(blank, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            file.write(npy(header((1, 100 << 20), "|u1")))
            for _ in range(100):
                file.write(bytes(1 << 20))
        archive.writestr("y.npy", Y)
    command = [sys.executable, "-c", WITHIN_2_GB, str(path), str(blank)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r"noprop: error: .*claims.npz: .* 800 bytes follow\n"
        r"noprop: error: .*blank.npz: .* x.npy unpacks .* to \d+: refused as a bomb\n",
        done.stderr,
    )


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """Two limits: 64 MiB, or a hundred times what the member takes in the file."""
    path, zeros = tmp_path / "a.npz", np.zeros((1000, 1000))
    np.savez_compressed(path, x=zeros, y=LABELS)
    assert read_arrays(path, ["x"])["x"].shape == (1000, 1000)
    monkeypatch.setattr("noprop.files.FREE_BYTES", 1 << 20)
    with refused(path, "x.npy unpacks from .* bytes to 8000128: refused as a bomb"):
        read_arrays(path, ["x"])
    np.savez_compressed(path, x=np.frombuffer(RNG.bytes(1 << 21), np.uint8)[None], y=LABELS)
    assert read_arrays(path, ["x"])["x"].shape == (1, 1 << 21)


def test_sizes_that_a_zip_claims_are_no_evidence(tmp_path, monkeypatch):
    """The directory of a kilobyte can say that a member takes terabytes, unpacked and packed."""
    data = bytearray(zipped(x=npy(header("(250_000_000,)")), y=Y))
    at = data.index(b"PK\1\2")  # the first entry of the directory
    data[at + 20 : at + 28] = struct.pack("<II", 2_000_000_128, 2_000_000_128)
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with refused(path, "unpacks from .* to 2000000128: refused as a bomb"):
        read_arrays(path, ["x"])


def test_only_the_arrays_that_are_used_are_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    x, y = npy(header((20, 1)), np.arange(20.0).tobytes()), np.arange(20) % 2
    y = npy(header("(20,)", "<i8"), y.tobytes())
    path.write_bytes(zipped(x=x, y=y, bomb=TEN_TERABYTES, junk=b"no array"))
    opened, original = [], zipfile.ZipFile.open

    def watched(self, name, *arguments, **options):
        opened.append(getattr(name, "filename", name))
        return original(self, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", watched)
    assert read_npz(path).num_classes == 2
    assert set(opened) == {"x.npy", "y.npy"}


def test_names_in_a_file_are_shown_in_part(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(Y, Y, 0, x_train=Y, **{f"{'n' * 1000}{i}": Y for i in range(997)}))
    with pytest.raises(DataError, match=r"\(1000\)") as caught:
        read_npz(path)
    assert len(str(caught.value)) < 1200


def test_an_idx_header_that_claims_more_than_there_is_takes_no_memory(tmp_path, monkeypatch):
    path = tmp_path / "images"
    claim = bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3)
    for data in (claim + bytes(100), gzip.compress(claim + bytes(100))):
        path.write_bytes(data)
        with refused(path, "refused as a bomb"):
            read_idx(path, dims=3)
    blank = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1, 1 << 11, 1 << 11) + bytes(1 << 22)
    path.write_bytes(gzip.compress(blank))
    assert not read_idx(path, dims=3).any()
    monkeypatch.setattr("noprop.files.FREE_BYTES", 1 << 20)
    with refused(path, "refused as a bomb"):
        read_idx(path, dims=3)


def test_a_gzip_stream_is_not_read_beyond_what_its_header_says(tmp_path, write_idx):
    """A thousand megabytes behind sixty bytes are not unpacked to be told apart from them."""
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(write_idx(path, IMAGES) + bytes(1 << 26), 1))
    tracemalloc.start()
    try:
        with refused(path, "but more follow"):
            read_idx(path, dims=3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


NPZ_DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "other kind": lambda data: b"not numpy at all",
    "flipped": lambda data: flip_byte(data, 200),
}


def test_floats_of_images_are_features_and_a_warning_says_so(tmp_path):
    x, y = np.zeros((10, 1, 8, 8)), np.arange(10) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.warns(
        UserWarning, match=r"a\.npz: x holds floats in 0\.\.1 in the shape of images"
    ):
        assert read_npz(tmp_path / "a.npz").train.x.dtype == torch.float32
    for features in (x + 2, x[:, 0, 0]):
        np.savez(tmp_path / "a.npz", x=features, y=y)
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("damage", NPZ_DAMAGE.values(), ids=NPZ_DAMAGE.keys())
def test_damaged_npz_is_refused(tmp_path, damage):
    path = tmp_path / "a.npz"
    path.write_bytes(damage(zip_bytes()))
    with refused(path, "empty|not a readable NumPy file"):
        read_npz(path)


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_nothing_in_a_numpy_file_is_executed(tmp_path, suffix):
    sprung, path = tmp_path / "sprung", tmp_path / f"a{suffix}"
    trap = np.array([Trap(sprung)], dtype=object)
    if suffix == ".npz":
        np.savez(path, x=trap, y=trap)
    else:
        np.save(path, trap, allow_pickle=True)
    with refused(path, "not a readable NumPy file"):
        read_arrays(path, ["x"])
    assert not sprung.exists()
    np.load(path, allow_pickle=True)["x" if suffix == ".npz" else 0]  # the trap does work
    assert sprung.exists()
