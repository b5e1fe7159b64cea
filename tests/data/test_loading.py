"""From a name to a data set: where it is looked for, and what is said when it is not there."""

import gzip
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from noprop.data import SOURCES, absolute_name, inspect_sources, load_dataset, search_path
from noprop.errors import DataError

RNG = np.random.default_rng(0)
IDX = "{}-{}-ubyte"
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def put_idx(write_idx):
    """Write a small set in MNIST's layout beneath a data folder; ``shade`` tells sets apart."""

    def put(root: Path, folder: str = "MNIST/raw", shade: int = 1) -> Path:
        for prefix, count in (("train", 30), ("t10k", 20)):
            images = np.full((count, 28, 28), shade)
            write_idx(root / folder / IDX.format(prefix, "images-idx3"), images)
            write_idx(root / folder / IDX.format(prefix, "labels-idx1"), np.arange(count) % 10)
        return root

    return put


@pytest.fixture
def any_bytes(monkeypatch):
    """Read the sets of the catalogue whatever is in their files."""
    for name, source in SOURCES.items():
        files = tuple(dict.fromkeys(names) for names in source.files)
        monkeypatch.setitem(SOURCES, name, replace(source, files=files))


def test_the_search_path_is_in_the_stated_order(tmp_path, monkeypatch, own_cache):
    assert search_path() == [own_cache]
    monkeypatch.setenv("NOPROP_DATA", str(tmp_path / "env"))
    given = tmp_path / "given"
    assert search_path(given) == [given, tmp_path / "env", own_cache]
    assert search_path(tmp_path / "env") == [tmp_path / "env", own_cache]
    monkeypatch.setenv("NOPROP_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert search_path() == [Path.home() / ".cache" / "noprop" / "data"]


@pytest.mark.usefixtures("any_bytes")
def test_the_first_complete_copy_is_read(tmp_path, monkeypatch, own_cache, put_idx):
    def shade() -> int:
        dataset = load_dataset("mnist", data_dir=tmp_path / "given", download=False)
        return int(dataset.train.x[0, 0, 0, 0])

    put_idx(own_cache, shade=3)
    assert shade() == 3
    monkeypatch.setenv("NOPROP_DATA", str(put_idx(tmp_path / "env", shade=2)))
    assert shade() == 2
    put_idx(tmp_path / "given", shade=1)
    assert shade() == 1
    (tmp_path / "given/MNIST/raw/t10k-labels-idx1-ubyte").unlink()  # no longer complete
    assert shade() == 2


@pytest.mark.usefixtures("any_bytes")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_gzipped_or_not(tmp_path, put_idx, name):
    put_idx(tmp_path, SOURCES[name].folder)
    for path in sorted(tmp_path.rglob("*images*")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    dataset = load_dataset(name, data_dir=tmp_path, download=False)
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (30, 20, (1, 28, 28))
    assert dataset.train.y.tolist() == [i % 10 for i in range(30)]
    assert dataset.name == name
    assert len(set(dataset.class_names)) == 10


@pytest.mark.usefixtures("any_bytes")
def test_idx_files_that_do_not_belong_together_are_named(tmp_path, put_idx, write_idx):
    put_idx(tmp_path)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    for path, array, message in (
        (labels, np.arange(29) % 10, f"{labels}: holds 29 labels for the 30 images of {images}"),
        (labels, np.arange(30), f"{labels}: a label is 29, wanted 0..9"),
        (images, np.zeros((30, 28, 27)), f"{images}: images are 28x27 pixels, wanted 28x28"),
    ):
        put_idx(tmp_path)
        write_idx(path, array)
        with pytest.raises(DataError) as caught:
            load_dataset("mnist", data_dir=tmp_path, download=False)
        assert str(caught.value) == message


def test_an_absent_set_is_explained(tmp_path, own_cache, put_idx):
    """The message must say where was looked, what is wanted and from where."""
    given = put_idx(tmp_path / "given")
    (given / "MNIST/raw/train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", data_dir=given, download=False)
    for part in (
        "mnist was not found",
        "downloading is switched off",
        f"{given / 'MNIST/raw'} (lacks train-images-idx3-ubyte.gz)",
        f"{own_cache / 'MNIST/raw'} (no such folder)",
        "get train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz",
        "from https://ossci-datasets.s3.amazonaws.com/mnist/,",
        "--data-dir or NOPROP_DATA",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_with_other_bytes_than_published_are_refused(tmp_path, put_idx):
    """They are whole, and labels are in range: only the published digest can tell."""
    put_idx(tmp_path)
    for name in ("cifar10", "cifar100"):
        for names in SOURCES[name].files:
            path = tmp_path / SOURCES[name].folder / next(iter(names))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(3073 * 3074))
    for name in ("mnist", "cifar10", "cifar100"):
        with pytest.raises(DataError, match=r": is not the published file \(sha256:"):
            load_dataset(name, data_dir=tmp_path, download=False)


@pytest.mark.usefixtures("any_bytes")
def test_the_file_that_is_read_is_the_one_that_is_checked(tmp_path, monkeypatch, put_idx):
    """Unzipped files are preferred, so their digests count where both are present."""
    put_idx(tmp_path)
    files, folder = [], tmp_path / SOURCES["mnist"].folder
    for names in SOURCES["mnist"].files:
        zipped, plain = names
        path = folder / plain
        path.with_name(zipped).write_bytes(b"another")
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        files.append({zipped: "sha256:0", plain: digest})
    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], files=tuple(files)))
    assert len(load_dataset("mnist", data_dir=tmp_path, download=False).train) == 30
    state = {s.name: s for s in inspect_sources(tmp_path, verify=True)}["mnist"]
    assert [file.intact for file in state.files] == [True] * 4
    labels = folder / IDX.format("train", "labels-idx1")
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    with pytest.raises(DataError, match=f"{labels}: is not the published file"):
        load_dataset("mnist", data_dir=tmp_path, download=False)


def test_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("digits", "mnist", "tiny-imagenet"):
        assert absolute_name(name) == name
    for name in ("birds", "./birds", str(tmp_path / "birds")):
        assert absolute_name(name) == str(tmp_path / "birds")
    assert absolute_name("./mnist") == str(tmp_path / "mnist")  # a folder that is called so
    assert absolute_name("~/birds.npz") == "/home/me/birds.npz"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR-10", "no data set 'CIFAR-10', did you mean cifar10?"),
        ("fashon-mnist", "did you mean fashion-mnist?"),
        ("tinyimagenet", "did you mean tiny-imagenet?"),
        ("qwertz", "no data set 'qwertz'. Known are digits, mnist, fashion-mnist, cifar10"),
        ("data/birds", "data/birds: no such file or folder"),
        ("birds.npz", "birds.npz: no such file or folder"),
    ],
)
def test_an_unknown_name_is_explained(name, message):
    with pytest.raises(DataError) as caught:
        load_dataset(name)
    assert message in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "images.h5"
    path.write_bytes(b"\x89HDF")
    with pytest.raises(
        DataError, match=r"images\.h5: wanted a folder of class folders of images, an"
    ):
        load_dataset(str(path))


def test_a_path_leads_to_arrays(tmp_path):
    path = tmp_path / "a.NPZ"
    with path.open("wb") as file:
        np.savez(file, x=RNG.normal(size=(20, 3)), y=np.arange(20) % 2)
    assert load_dataset(str(path)).num_classes == 2


def test_own_data_that_were_moved_are_searched_by_their_last_name(tmp_path, monkeypatch):
    """In data_dir and then NOPROP_DATA; data that are in their own place are read there."""
    moved, place = tmp_path / "new" / "a.npz", str(tmp_path / "old" / "a.npz")
    moved.parent.mkdir()
    np.savez(moved, x=RNG.normal(size=(20, 3)), y=np.arange(20) % 2)
    with pytest.raises(DataError, match=r"a\.npz: no such file or folder; .* --data-dir"):
        load_dataset(place)
    assert load_dataset(place, data_dir=moved.parent).num_classes == 2
    monkeypatch.setenv("NOPROP_DATA", str(moved.parent))
    assert load_dataset(place).num_classes == 2
    (tmp_path / "old").mkdir()
    np.savez(place, x=RNG.normal(size=(20, 3)), y=np.arange(20) % 4)
    assert load_dataset(place).num_classes == 4
    with pytest.raises(DataError, match=r"no such file or folder"):
        load_dataset(f"{tmp_path}/absent/..")


@pytest.mark.parametrize("options", [{"image_size": 8}, {"color": "rgb"}])
def test_options_for_folders_are_refused_elsewhere(options):
    with pytest.raises(DataError, match="digits: image_size and color are for folders"):
        load_dataset("digits", **options)


def test_digits_keep_their_pixels_and_their_parts():
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    dataset = load_dataset("digits")
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (1438, 359, (1, 8, 8))
    rows = {(tuple(image), int(label)) for image, label in zip(images, target, strict=True)}
    seen = [
        (tuple((x.flatten().double() / 15).tolist()), int(y))
        for part in (dataset.train, dataset.test)
        for x, y in zip(part.x, part.y, strict=True)
    ]
    assert len(seen) == len(images)
    assert set(seen) == rows  # 0..16 is recovered exactly, under the right label


def test_the_test_part_of_digits_never_changes():
    """Published numbers rest on these 359; another seed or shuffle would silently move them."""
    test = load_dataset("digits").test
    assert test.y[:12].tolist() == [1, 2, 6, 0, 3, 6, 2, 5, 9, 9, 8, 1]
    assert int(test.x.sum()) == 1_668_330


def test_the_state_of_every_set_is_reported(tmp_path, put_idx):
    put_idx(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    states = {state.name: state for state in inspect_sources(tmp_path)}
    assert list(states) == ["digits", *SOURCES]
    assert states["digits"].available
    mnist, cifar = states["mnist"], states["cifar10"]
    assert mnist.folder == tmp_path / "MNIST/raw"
    assert not mnist.available
    assert [file.path is not None for file in mnist.files] == [True, True, True, False]
    assert all(file.intact is None for file in mnist.files)
    assert (cifar.folder, cifar.available) == (None, False)
    assert "cifar-10-binary.tar.gz and unpack it" in cifar.how

    put_idx(tmp_path)
    verified = {state.name: state for state in inspect_sources(tmp_path, verify=True)}["mnist"]
    assert verified.available
    assert [file.intact for file in verified.files] == [False] * 4  # these are not MNIST


def test_what_is_reported_of_digits_is_true():
    state, dataset = inspect_sources()[0], load_dataset("digits")
    assert state.sizes == (len(dataset.train), len(dataset.test))
    assert (state.shape, state.num_classes) == (dataset.shape, dataset.num_classes)


@pytest.mark.parametrize(
    ("module", "extra", "name"),
    [
        ("PIL", "images", "folder"),
        ("pooch", "download", "mnist"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, write_image, module, extra, name):
    for label in ("a", "b"):
        write_image(tmp_path / "folder" / label / "0.png", 2, 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"pip install 'noprop\[{extra}\]'"):
        load_dataset(name)


def test_a_user_without_a_home_folder_names_one(monkeypatch, tmp_path):
    """As in a container with a user number that nobody has named."""

    def homeless(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    assert search_path() == []
    assert search_path(tmp_path) == [tmp_path]
    assert not any(s.available for s in inspect_sources() if s.name != "digits")
    with pytest.raises(DataError, match="no home folder to have one in; name it as --data-dir"):
        load_dataset("mnist")
    with pytest.raises(DataError, match="~nobody/x: there is no such user"):
        load_dataset("~nobody/x")
