"""The published data sets themselves: counts, known moments, and parts that do not overlap."""

import pytest
import torch

from noprop.data import SOURCES, Normalization, hold_out, inspect_sources, load_dataset
from noprop.errors import DataError

pytestmark = pytest.mark.real_data

# (mean, deviation) of the training pixels, as published many times over.
MOMENTS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_counts_and_moments_are_the_published_ones(real_data, name):
    dataset, source = load_dataset(name, data_dir=real_data(name), download=False), SOURCES[name]
    assert (len(dataset.train), len(dataset.test)) == source.sizes
    assert (dataset.shape, dataset.num_classes) == (source.shape, source.num_classes)
    if name != "mnist":
        for part in (dataset.train, dataset.test):
            counts = torch.bincount(part.y).tolist()
            assert counts == [len(part) // source.num_classes] * source.num_classes
    norm = Normalization.of(dataset.train.x)
    mean, std = MOMENTS[name]
    assert norm.mean == pytest.approx(mean, abs=6e-5)
    assert norm.std == pytest.approx(std, abs=6e-5)


def test_mnist_has_its_known_labels(real_data):
    dataset = load_dataset("mnist", data_dir=real_data("mnist"), download=False)
    assert dataset.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(dataset.test.y).tolist() == counts


def test_cifar10_is_laid_out_as_red_green_blue_rows(real_data):
    """The first training image is a frog, whose first pixels are known from the python version."""
    dataset = load_dataset("cifar10", data_dir=real_data("cifar10"), download=False)
    assert dataset.train.y[:5].tolist() == [6, 9, 9, 4, 1]
    assert dataset.class_names[6] == "frog"
    frog = dataset.train.x[0]
    assert frog[:, 0, :3].T.tolist() == [[59, 62, 63], [43, 46, 45], [50, 48, 43]]
    assert frog[:, 1, :3].T.tolist() == [[16, 20, 20], [0, 0, 0], [18, 8, 0]]


def test_cifar100_labels_are_the_fine_ones(real_data):
    dataset = load_dataset("cifar100", data_dir=real_data("cifar100"), download=False)
    assert dataset.train.y[:3].tolist() == [19, 29, 0]
    names = (real_data("cifar100") / "cifar-100-binary" / "fine_label_names.txt").read_text()
    assert dataset.class_names == tuple(names.split())


def test_tiny_imagenet_is_read_whole(real_data):
    dataset = load_dataset("tiny-imagenet", data_dir=real_data("tiny-imagenet"), download=False)
    assert dataset.shape == (3, 64, 64)
    assert dataset.num_classes == 200
    assert torch.bincount(dataset.test.y).tolist() == [50] * 200
    per_class = torch.bincount(dataset.train.y).unique()
    assert per_class.numel() == 1  # 500, or fewer in a partial copy
    assert per_class.item() <= 500
    assert dataset.class_names[:2] == ("Egyptian cat", "reel")
    assert all(bool(image.any()) for image in dataset.train.x[::97])  # none was left blank


def test_validation_is_a_stratified_part_of_training(real_data):
    dataset = load_dataset("mnist", data_dir=real_data("mnist"), download=False)
    splits = hold_out(dataset, 0.1, seed=3)
    assert (len(splits.train), len(splits.validation)) == (54_000, 6_000)
    shares = torch.bincount(splits.validation.y) / torch.bincount(dataset.train.y)
    assert (shares - 0.1).abs().max() < 1e-3
    assert splits.test is dataset.test


def test_the_copies_are_intact(real_data):
    for name in ("mnist", "cifar10", "cifar100"):
        states = {state.name: state for state in inspect_sources(real_data(name), verify=True)}
        assert all(file.intact for file in states[name].files)


@pytest.mark.parametrize("change", ["half", "flip"])
def test_one_wrong_byte_of_cifar_is_found(real_data, tmp_path, change):
    """Neither shows in the records: half of them are whole ones, and a pixel may have any value."""
    source, folder = SOURCES["cifar10"], real_data("cifar10")
    (tmp_path / source.folder).mkdir()
    for path in (folder / source.folder).iterdir():
        (tmp_path / source.folder / path.name).symlink_to(path)
    broken = tmp_path / source.folder / "test_batch.bin"
    data = bytearray(broken.read_bytes())
    broken.unlink()
    if change == "flip":
        data[1000] ^= 1
    broken.write_bytes(data if change == "flip" else data[: len(data) // 2])
    with pytest.raises(DataError, match=r"test_batch\.bin: is not the published file"):
        load_dataset("cifar10", data_dir=tmp_path, download=False)
