"""The paper's numbers and settings, typed a second time."""

import pytest
import torch

from noprop.build import build_embedding, build_method
from noprop.config import replace
from noprop.data import SOURCES, Normalization
from noprop.paper.cells import EXPERIMENTS, Cell
from noprop.paper.numbers import EARLIER, EPOCHS, SETTINGS, TABLE1, TABLE2
from noprop.paper.pages import parameter_table
from noprop.paper.parameters import block_parameters, parameter_rows
from noprop.paper.scale import Scale
from noprop.settings import EncoderConfig
from noprop.task import Task

# Test accuracies, one-hot / d=20 / prototype.
TEST_ACCURACY = {
    "backprop": "99.46 99.43 99.44 79.92 79.30 79.58 45.85 46.57 47.80",
    "dt": "99.47 99.49 99.54 79.25 79.12 80.54 45.93 45.19 46.06",
    "ct": "97.84 97.70 97.17 73.35 71.77 66.54 33.66 33.99 21.31",
    "fm": "99.21 99.29 98.52 73.14 73.50 75.18 6.38 31.14 37.57",
}
EMBEDDINGS = ("one-hot", "d20", "prototype")
DATASETS = ("mnist", "cifar10", "cifar100")
# Parameters of one block, worked out by hand from Fig. 5.
DISCRETE = {
    "mnist": (919_946, 922_506, 1_401_738),
    "cifar10": (1_215_434, 1_217_994, 1_992_714),
    "cifar100": (1_250_084, 1_229_604, 2_004_324),
}
CONTINUOUS = {
    "mnist": (867_722, 870_282, 1_482_122),
    "cifar10": (1_163_210, 1_165_770, 2_073_098),
    "cifar100": (1_197_860, 1_177_380, 2_084_708),
}


def mean(number):
    return number and number.mean


def test_table_1_is_as_printed():
    for method, text in TEST_ACCURACY.items():
        wanted = [float(v) for v in text.split()]
        ours = [mean(TABLE1[method, e][d][1]) for d in DATASETS for e in EMBEDDINGS]
        assert ours == wanted, method
    adjoint = [mean(TABLE1["adjoint", "one-hot"][d][1]) for d in DATASETS]
    assert adjoint == [98.62, 66.78, 25.03]
    quoted = {m: [mean(n[1]) for n in TABLE1[m, "one-hot"].values()] for m in EARLIER}
    assert quoted == {
        "ff-unsupervised": [98.63],
        "ff": [None],
        "lg-fg-a": [97.45, 69.32],
        "dtp": [98.06, 50.71],
    }
    tiny = {row: mean(numbers["tiny-imagenet"][1]) for row, numbers in TABLE2.items()}
    assert tiny == {
        ("dt", "one-hot"): 26.55,
        ("dt", "prototype"): 25.65,
        ("backprop", "one-hot"): 23.83,
        ("backprop", "prototype"): 31.26,
    }


def test_some_printed_errors_cannot_be_standard_errors_of_15_values():
    """n values in [0, 100] with mean m have a variance of at most m (100 - m) n/(n - 1)."""
    impossible = []
    for table in (TABLE1, TABLE2):
        for row, numbers in table.items():
            for dataset, parts in numbers.items():
                for part, number in zip(("train", "test"), parts, strict=True):
                    if number is None:
                        continue
                    variance = number.mean * (100 - number.mean) * 15 / 14
                    if number.error > (variance / 15) ** 0.5:
                        impossible.append((*row, dataset, part))
    assert ("backprop", "one-hot", "tiny-imagenet", "train") in impossible
    assert ("fm", "one-hot", "cifar100", "train") in impossible


@pytest.mark.parametrize("dataset", DATASETS)
def test_parameters_are_those_of_fig_5(dataset):
    for method, counts in (("dt", DISCRETE), ("backprop", DISCRETE), ("ct", CONTINUOUS),
                           ("fm", CONTINUOUS)):  # fmt: skip
        ours = tuple(block_parameters(Cell(dataset, method, e)) for e in EMBEDDINGS)
        assert ours == counts[dataset], method
    assert block_parameters(Cell(dataset, "adjoint", "one-hot")) == CONTINUOUS[dataset][0]


def test_table_5_differs_on_tiny_imagenet_and_nowhere_else():
    assert block_parameters(Cell("tiny-imagenet", "dt", "one-hot")) == 2_402_952
    assert block_parameters(Cell("tiny-imagenet", "dt", "prototype")) == 4_245_960
    differing = {c.name for c, n, m in parameter_rows() if f"{n / 1e6:.2f}" != f"{m:.2f}"}
    assert differing == {"tiny-imagenet-dt", "tiny-imagenet-dt-prototype"}
    assert parameter_table().count("(differs)") == 2


TABLE_1 = [cell for cell in EXPERIMENTS["table1"] if cell.method not in EARLIER]


@pytest.mark.parametrize("cell", TABLE_1, ids=lambda cell: cell.name)
def test_a_cell_trains_the_block_that_is_counted(cell):
    """The count of Table 5 is of the network that the cell's own recipe builds."""
    source = SOURCES[cell.dataset]
    channels = source.shape[0]
    names = tuple(map(str, range(source.num_classes)))
    task = Task(source.shape, names, Normalization((0.5,) * channels, (0.5,) * channels))
    config = replace(cell.config(Scale(), 0), {"train.device": "cpu"})
    embedding = build_embedding(config, task, None)
    with torch.no_grad():
        unit = build_method(config, task, embedding, only="block-1").units[0]
    network = getattr(unit.module, "blocks", None)
    network = network[0] if network is not None else getattr(unit.module, "network", unit.module)
    assert sum(p.numel() for p in network.parameters()) == block_parameters(cell)


def test_settings_are_those_of_table_4():
    epochs = {
        "mnist": {"adjoint": 2},
        "cifar10": {"adjoint": 4, "dt": 150, "backprop": 150, "ct": 500, "fm": 500},
        "cifar100": {"adjoint": 4, "dt": 150, "backprop": 150, "ct": 1000, "fm": 1000},
    }
    for cell in TABLE_1:
        c = cell.config(Scale(), 2)
        assert c.train.epochs == epochs[cell.dataset].get(cell.method, 100)
        assert (c.train.batch_size, c.train.lr, c.train.weight_decay) == (128, 1e-3, 1e-3)
        assert c.train.optimizer == ("adam" if cell.method in ("ct", "fm") else "adamw")
        assert (c.train.crop_padding, c.train.flip) == (0, False)
        assert isinstance(c.method, EncoderConfig)
        assert c.method.dropout == 0.2
        assert (c.evaluation.runs, c.train.seed, c.train.order) == (5, 2, "sequential")
        length = getattr(c.method, "num_blocks", None) or getattr(c.method, "steps", None)
        assert length == (10 if cell.method in ("dt", "backprop") else 1000)
        assert getattr(c.method, "eta", None) == {"dt": 0.1, "ct": 1.0}.get(cell.method)
        assert c.train.epochs == EPOCHS[cell.method][cell.dataset]
        assert c.train.optimizer == SETTINGS[cell.method]["optimizer"]
        assert length == SETTINGS[cell.method]["T"]
        assert c.data.train_size is None
        assert c.data.test_size is None


def test_every_experiment_has_the_cells_of_the_paper():
    counts = {name: len(set(cells)) for name, cells in EXPERIMENTS.items()}
    assert counts == {
        "table1": 45, "table2": 4, "table3": 15, "table5": 0,
        "fig3": 1, "fig4": 9, "fig6": 18, "fig7": 9,
    }  # fmt: skip
    assert {c.name for c in EXPERIMENTS["fig4"]} <= {c.name for c in EXPERIMENTS["table1"]}
    starts = {c.embedding: c.config(Scale(), 0).method for c in EXPERIMENTS["fig7"]}
    assert {m.embedding for m in starts.values()} == {"random", "orthogonal", "prototype"}
    assert all(m.learned for m in starts.values())
    # At one scale, or the length of an embedding would decide; and from the paper's readout.
    assert {
        getattr(m, "embedding_norm", None) for m in starts.values() if m.embedding != "prototype"
    } == {"prototype"}
    cells = {c for cells in EXPERIMENTS.values() for c in cells if c.method not in EARLIER}
    assert {getattr(c.config(Scale(), 0).method, "readout_start", "") for c in cells} == {"random"}
    assert {c.name for c in EXPERIMENTS["table1"] if c.method in EARLIER} == {
        "mnist-ff-unsupervised", "mnist-ff", "mnist-lg-fg-a", "cifar10-lg-fg-a", "mnist-dtp",
        "cifar10-dtp",
    }  # fmt: skip
