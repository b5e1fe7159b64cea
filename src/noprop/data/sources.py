"""The catalogue: the addresses of published data sets, their digests, and their readers.

Folders are those that the archives unpack to and that other loaders use, so one copy serves all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from noprop.data.arrays import Dataset, Examples
from noprop.data.folders import read_tiny_imagenet
from noprop.data.formats import read_cifar, read_idx
from noprop.errors import DataError

__all__ = ["SOURCES", "Download", "Source"]


@dataclass(frozen=True)
class Download:
    """A published file.

    Attributes:
        url: Address of the file.
        digest: Published digest, "sha256:..." or "md5:...".
        unpack: Whether the file is an archive to unpack, rather than one of the needed files.
    """

    url: str
    digest: str
    unpack: bool

    @property
    def file_name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        name: Name that the user gives.
        folder: Subfolder of a data folder.
        files: The needed files. Each entry maps the names that will do (gzipped or not) to the
            digest, or to None where none is known or it is a folder.
        downloads: Files to download if one is missing.
        read: Function that reads the folder.
        shape: Shape of one example.
        num_classes: Number of classes.
        sizes: Training and test examples, as published.
    """

    name: str
    folder: str
    files: tuple[Mapping[str, str | None], ...]
    downloads: tuple[Download, ...]
    read: Callable[[Path], Dataset]
    shape: tuple[int, ...]
    num_classes: int
    sizes: tuple[int, int]

    @property
    def instructions(self) -> str:
        """Return how to get the data by hand; the caller adds where to put them."""
        first = self.downloads[0]
        if first.unpack:
            return f"get {first.url} and unpack it"
        names = ", ".join(item.file_name for item in self.downloads)
        return f"get {names} from {first.url.removesuffix(first.file_name)}"

    def digests(self, folder: Path) -> Iterator[tuple[str, Path | None, str | None]]:
        """Yield the first name of each needed file, the path to read and the published digest."""
        for names in self.files:
            # The last name first: what is unzipped is read before what is not.
            found = next((name for name in reversed(list(names)) if (folder / name).exists()), None)
            first = next(iter(names))
            yield (first, None, None) if found is None else (found, folder / found, names[found])

    def missing(self, root: Path) -> list[str]:
        """Return the first names of the needed files that the data folder ``root`` lacks."""
        folder = root / self.folder
        return [
            next(iter(names))
            for names in self.files
            if not any((folder / name).exists() for name in names)
        ]


def _idx_reader(name: str, class_names: tuple[str, ...]) -> Callable[[Path], Dataset]:
    def part(folder: Path, prefix: str) -> Examples:
        images_path = _either(folder, f"{prefix}-images-idx3-ubyte")
        labels_path = _either(folder, f"{prefix}-labels-idx1-ubyte")
        images, labels = read_idx(images_path, dims=3), read_idx(labels_path, dims=1)
        if images.shape[1:] != (28, 28):
            height, width = images.shape[1:]
            raise DataError(f"{images_path}: images are {height}x{width} pixels, wanted 28x28")
        if len(images) != len(labels):
            raise DataError(
                f"{labels_path}: holds {len(labels)} labels for the {len(images)} images of "
                f"{images_path}"
            )
        if int(labels.max()) >= len(class_names):
            raise DataError(
                f"{labels_path}: a label is {int(labels.max())}, wanted 0..{len(class_names) - 1}"
            )
        return Examples(images[:, None], labels.long())

    return lambda folder: Dataset(name, part(folder, "train"), part(folder, "t10k"), class_names)


def _either(folder: Path, name: str) -> Path:
    """Return the path of the unzipped file if it exists, else that of the gzipped one."""
    return folder / name if (folder / name).exists() else folder / f"{name}.gz"


def _read_cifar10(folder: Path) -> Dataset:
    parts = [read_cifar(folder / f"data_batch_{i}.bin", (10,), 10_000) for i in range(1, 6)]
    train = Examples(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    test = Examples(*read_cifar(folder / "test_batch.bin", (10,), 10_000))
    return Dataset("cifar10", train, test, CIFAR10_CLASSES)


def _read_cifar100(folder: Path) -> Dataset:
    """Read the 100 fine labels."""
    train = Examples(*read_cifar(folder / "train.bin", (20, 100), 50_000))
    test = Examples(*read_cifar(folder / "test.bin", (20, 100), 10_000))
    return Dataset("cifar100", train, test, CIFAR100_CLASSES)


DIGITS = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
    couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
    house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": (
        "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte.gz": (
        "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": (
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        "md5:25c81989df183df01b3e8a0aad5dffbe",
        "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "md5:bef4ecab320f06d8554ea6380940ec79",
        "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
        "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}

CIFAR10_FILES = {
    "data_batch_1.bin": "sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "sha256:8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
CIFAR100_FILES = {
    "train.bin": "sha256:f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
    "test.bin": "sha256:d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
}
VAL_ANNOTATIONS = "sha256:c37765a8b40fce4f28962bf1847a2537e2781753974cbb2447eeb50ff31130a2"
TINY_FILES = {
    "wnids.txt": "sha256:a36eb4b603007f1985cdfbfc5987166a2710b3c6f0f6d3e29636fc129bba527b",
    "words.txt": "sha256:55df3c6ee75859de344e2834ef65d88d61cec389d57e787be59e942c9b73e9aa",
    "train": None,
    "val/val_annotations.txt": VAL_ANNOTATIONS,
    "val/images": None,
}


def _idx_source(
    name: str,
    folder: str,
    url: str,
    files: Mapping[str, tuple[str, str]],
    class_names: tuple[str, ...],
) -> Source:
    """Return the source of four idx files, with the digests of each file gzipped and unzipped."""
    return Source(
        name,
        folder,
        files=tuple({gz: zipped, gz[:-3]: plain} for gz, (zipped, plain) in files.items()),
        downloads=tuple(
            Download(url + gz, zipped, unpack=False) for gz, (zipped, _) in files.items()
        ),
        read=_idx_reader(name, class_names),
        shape=(1, 28, 28),
        num_classes=10,
        sizes=(60_000, 10_000),
    )


_CATALOGUE = (
    _idx_source("mnist", "MNIST/raw", MNIST_URL, MNIST_FILES, DIGITS),
    _idx_source("fashion-mnist", "FashionMNIST/raw", FASHION_URL, FASHION_FILES, FASHION_CLASSES),
    Source(
        "cifar10",
        "cifar-10-batches-bin",
        files=tuple({name: digest} for name, digest in CIFAR10_FILES.items()),
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                unpack=True,
            ),
        ),
        read=_read_cifar10,
        shape=(3, 32, 32),
        num_classes=10,
        sizes=(50_000, 10_000),
    ),
    Source(
        "cifar100",
        "cifar-100-binary",
        files=tuple({name: digest} for name, digest in CIFAR100_FILES.items()),
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                "md5:03b5dce01913d631647c71ecec9e9cb8",
                unpack=True,
            ),
        ),
        read=_read_cifar100,
        shape=(3, 32, 32),
        num_classes=100,
        sizes=(50_000, 10_000),
    ),
    Source(
        "tiny-imagenet",
        "tiny-imagenet-200",
        files=tuple({name: digest} for name, digest in TINY_FILES.items()),
        downloads=(
            Download(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "md5:90528d7ca1a48142e341f4ef8d21d0de",
                unpack=True,
            ),
        ),
        read=read_tiny_imagenet,
        shape=(3, 64, 64),
        num_classes=200,
        sizes=(100_000, 10_000),
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _CATALOGUE}
