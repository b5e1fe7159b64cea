"""The networks of Fig. 5: counted, and compared with the figure written out in plain torch."""

import pytest
import torch
from torch import nn

from noprop.encoders import Features, trimmed_size
from noprop.networks import ContinuousBlock, DiscreteBlock, sinusoidal_embedding
from noprop.randomness import seeded

MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "shape", "latent", "classes", "count"),
    [
        (DiscreteBlock, MNIST, (10,), 10, 919_946),
        (DiscreteBlock, MNIST, (20,), 10, 922_506),
        (DiscreteBlock, MNIST, MNIST, 10, 1_401_738),
        (DiscreteBlock, CIFAR, (10,), 10, 1_215_434),
        (DiscreteBlock, CIFAR, (20,), 10, 1_217_994),
        (DiscreteBlock, CIFAR, CIFAR, 10, 1_992_714),
        (DiscreteBlock, CIFAR, (100,), 100, 1_250_084),
        (DiscreteBlock, CIFAR, (20,), 100, 1_229_604),
        (DiscreteBlock, CIFAR, CIFAR, 100, 2_004_324),
        (DiscreteBlock, TINY, (200,), 200, 2_402_952),
        (DiscreteBlock, TINY, TINY, 200, 4_245_960),
        (ContinuousBlock, MNIST, (10,), 10, 867_722),
        (ContinuousBlock, MNIST, (20,), 10, 870_282),
        (ContinuousBlock, MNIST, MNIST, 10, 1_482_122),
        (ContinuousBlock, CIFAR, (10,), 10, 1_163_210),
        (ContinuousBlock, CIFAR, (20,), 10, 1_165_770),
        (ContinuousBlock, CIFAR, CIFAR, 10, 2_073_098),
        (ContinuousBlock, CIFAR, (100,), 100, 1_197_860),
        (ContinuousBlock, CIFAR, (20,), 100, 1_177_380),
        (ContinuousBlock, CIFAR, CIFAR, 100, 2_084_708),
    ],
)
def test_parameters_of_a_block_are_those_of_table_5(block, shape, latent, classes, count):
    assert sum(p.numel() for p in block(shape, latent, classes).parameters()) == count


@pytest.mark.parametrize(("shape", "count"), [(MNIST, 2048), (CIFAR, 3200), (TINY, 6400)])
def test_features_of_an_image(shape, count):
    assert Features(shape).project.in_features == count


# -- the figure, literally ---------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, h):
        return h + self.inner(h)


def literal_image(shape, batch_norm):
    channels, *size = shape
    layers: list[nn.Module] = [
        *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2)),
    ]
    if min(size) >= 48:
        layers += [nn.Conv2d(128, 256, 3), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    features = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(
        *layers, nn.Linear(features, 256), nn.BatchNorm1d(256) if batch_norm else nn.ReLU()
    )


def literal_latent(shape, batch_norm):
    if len(shape) == 3:
        return literal_image(shape, batch_norm)
    if not batch_norm:
        return nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU())
    inner = [
        *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()),
        *(nn.Linear(256, 256), nn.BatchNorm1d(256)),
    ]
    return nn.Sequential(
        nn.Linear(shape[0], 256), nn.BatchNorm1d(256), nn.ReLU(), Residual(nn.Sequential(*inner))
    )


class Literal(nn.Module):
    """Fig. 5 as drawn: whole images, concatenation, one layer after the other; no dropout."""

    def __init__(self, shape, latent, classes, *, time):
        super().__init__()
        norm = not time
        self.latent_shape = latent
        self.image = literal_image(shape, norm)
        self.latent = literal_latent(latent, norm)
        self.time = nn.Sequential(nn.Linear(64, 256), nn.ReLU()) if time else None
        self.head = nn.Sequential(
            nn.Linear(768 if time else 512, 256),
            *([nn.BatchNorm1d(256)] if norm else []),
            nn.ReLU(),
            nn.Linear(256, 128),
            *([nn.BatchNorm1d(128)] if norm else []),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def forward(self, z, x, t=None):
        parts = [self.image(x), self.latent(z.unflatten(1, self.latent_shape))]
        if self.time is not None and t is not None:
            parts.append(self.time(sinusoidal_embedding(t)))
        return self.head(torch.cat(parts, dim=1))


def pair(shape, latent, classes=5, *, time=False, dropout=0.2):
    """A block and the literal network of equal numbers in float64, with moments in the norms."""
    with seeded(0):
        block = (ContinuousBlock if time else DiscreteBlock)(
            shape, latent, classes, dropout=dropout
        ).double()
        literal = Literal(shape, latent, classes, time=time).double()
        for name, buffer in block.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    ours, theirs = block.state_dict(), literal.state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    literal.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    return block, literal


def inputs(shape, latent, batch=3):
    source = generator(1)
    x = torch.randn(batch, *shape, generator=source, dtype=torch.float64, requires_grad=True)
    d = torch.Size(latent).numel()
    z = torch.randn(batch, d, generator=source, dtype=torch.float64, requires_grad=True)
    t = torch.rand(batch, generator=source, dtype=torch.float64)
    return x, z, t


def assert_same_function(block, literal, shape, latent, *, time=False):
    """Logits and every gradient: of the image, the latent and each parameter."""
    x, z, t = inputs(shape, latent)
    if time:
        ours, theirs = block(z, block.context(x), block.time_context(t)), literal(z, x, t)
    else:
        ours, theirs = block(z, block.context(x)), literal(z, x)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn(ours.shape, generator=generator(2), dtype=torch.float64)
    found = torch.autograd.grad((ours * direction).sum(), (x, z, *block.parameters()))
    expected = torch.autograd.grad((theirs * direction).sum(), (x, z, *literal.parameters()))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("side", [14, 28, 29, 30, 31, 32, 33, 47, 48, 49, 64])
def test_a_discrete_block_is_the_figure(side):
    """Trimming, the pool before its ReLU and the split first layer change nothing."""
    shape = (2, side, side)
    block, literal = pair(shape, (7,))
    assert_same_function(block.eval(), literal.eval(), shape, (7,))


@pytest.mark.parametrize(
    ("shape", "latent"),
    [(MNIST, (20,)), ((3, 29, 33), (4,)), ((1, 30, 28), (1, 30, 28))],
)
def test_blocks_of_every_kind_are_the_figure(shape, latent):
    for time in (False, True):
        block, literal = pair(shape, latent, time=time)
        assert_same_function(block.eval(), literal.eval(), shape, latent, time=time)


def test_a_block_in_training_without_dropout_is_the_figure_too():
    """Batch norm takes the batch's own moments, and both keep the same running ones."""
    block, literal = pair((1, 16, 16), (4,), dropout=0.0)
    assert_same_function(block, literal, (1, 16, 16), (4,))
    buffers = zip(block.buffers(), literal.buffers(), strict=True)
    for ours, theirs in buffers:
        torch.testing.assert_close(ours, theirs)
    before = block.state_dict()["image.finish.running_mean"].clone()
    block.eval().context(inputs((1, 16, 16), (4,))[0])
    assert torch.equal(before, block.state_dict()["image.finish.running_mean"])


def test_one_time_for_all_is_the_same_time_for_each():
    block = ContinuousBlock((1, 16, 16), (4,), 5).double()
    x, z, _ = inputs((1, 16, 16), (4,))
    context = block.eval().context(x)
    t = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(
        block(z, context, block.time_context(t)),
        block(z, context, block.time_context(t.expand(3))),
    )


@pytest.mark.parametrize("side", [14, 15, 16, 17, 28, 31, 47, 48, 50, 61, 64])
def test_pixels_beyond_the_trim_reach_no_output_and_the_last_within_does(side):
    """By value: the trim keeps exactly the rows that the untrimmed convolutions read."""
    deep = side >= 48
    kept = trimmed_size(side, deep=deep)
    x = torch.randn(1, 1, side, side, generator=generator(), requires_grad=True)
    with seeded(0):
        path = literal_image((1, side, side), batch_norm=False)[:-2]
    (gradient,) = torch.autograd.grad(path(x).sum(), x)
    rows = gradient[0, 0].abs().sum(1) > 0
    assert not rows[kept:].any()
    assert rows[kept - 3 : kept].any()


# -- time --------------------------------------------------------------------------------------


def test_the_time_embedding_by_its_formula():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = sinusoidal_embedding(t)
    assert found.shape == (3, 64)
    for i in range(32):
        angle = 1000 * t * 10_000 ** (-i / 31)
        torch.testing.assert_close(found[:, i], angle.sin())
        torch.testing.assert_close(found[:, 32 + i], angle.cos())


def test_the_time_scale_multiplies_the_angle():
    """Scale s at time t is scale 1000 at time s t / 1000, in the embedding and in a block."""
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    torch.testing.assert_close(sinusoidal_embedding(t, 100.0), sinusoidal_embedding(t / 10))
    block = ContinuousBlock((5,), (4,), 3, time_scale=100.0).double()
    own = ContinuousBlock((5,), (4,), 3).double()
    own.load_state_dict(block.state_dict())
    torch.testing.assert_close(block.time_context(t), own.time_context(t / 10))


def test_a_thousand_times_are_told_apart():
    """Neighbours of the grid i/1000 differ by a step that the network can see, none coincide."""
    table = sinusoidal_embedding(torch.arange(1001) / 1000)
    distance = torch.cdist(table, table)
    distance.fill_diagonal_(torch.inf)
    assert distance.min() > 0.5
