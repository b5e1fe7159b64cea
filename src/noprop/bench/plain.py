"""Plain PyTorch loops that ours is compared with: straightforward, and as short as is fair.

They run eager float32 in one process with default threads. They use the whole image, ReLU before
the pool, and ``nn.Dropout``, and compute all features of x again at every step. They compute the
same as the methods: :mod:`tests.bench.test_plain` compares both with the same weights.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "PlainContinuous",
    "PlainDiscrete",
    "cosine_alpha_bar",
    "plain_inference",
    "plain_training",
]

ETA = 0.1
BATCH = 128


def image_path(shape: tuple[int, int, int], *, batch_norm: bool) -> nn.Sequential:
    """Build Fig. 5's convolutions and the FC 256 on top."""
    channels, height, width = shape
    features = 128 * math.prod(((side - 2) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2)),
        *(nn.Flatten(), nn.Linear(features, 256)),
        nn.BatchNorm1d(256) if batch_norm else nn.ReLU(),
    )


class PlainDiscrete(nn.Module):
    """Block of Fig. 5, left, as drawn."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.image = image_path(shape, batch_norm=True)
        self.first = nn.Sequential(nn.Linear(classes, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.rest = nn.Sequential(
            *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()),
            *(nn.Linear(256, 256), nn.BatchNorm1d(256)),
        )
        self.head = nn.Sequential(
            *(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU()),
            *(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU()),
            nn.Linear(128, classes),
        )

    def forward(
        self, z: Float[Tensor, "batch dim"], x: Float[Tensor, "batch c h w"]
    ) -> Float[Tensor, "batch classes"]:
        """Return logits."""
        h = self.first(z)
        return self.head(torch.cat([self.image(x), h + self.rest(h)], dim=1))


class PlainContinuous(nn.Module):
    """Network of Fig. 5, right, as drawn."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.image = image_path(shape, batch_norm=False)
        self.latent = nn.Sequential(nn.Linear(classes, 256), nn.ReLU())
        self.time = nn.Sequential(nn.Linear(64, 256), nn.ReLU())
        self.head = nn.Sequential(
            *(nn.Linear(768, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()),
            nn.Linear(128, classes),
        )

    def forward(
        self,
        z: Float[Tensor, "batch dim"],
        x: Float[Tensor, "batch c h w"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch classes"]:
        """Return logits."""
        angle = 1000 * t[:, None] * torch.exp(-math.log(10_000.0) * torch.arange(32) / 31)
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        return self.head(torch.cat([self.image(x), self.latent(z), time], dim=1))


def cosine_alpha_bar(steps: int) -> Float[Tensor, " levels"]:
    """Return ᾱ at t = 0..T, from noise to clean."""
    angle = (1 - torch.linspace(0, 1, steps + 1) + 0.008) / 1.008 * math.pi / 2
    return (angle.cos().square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2).clamp(1e-6, 1 - 1e-6)


Turn = Callable[[Tensor, Tensor], None]


def plain_training(
    method: str, shape: tuple[int, int, int], classes: int, steps: int
) -> tuple[Turn, Sequence[nn.Module]]:
    """Return a function that trains on one mini-batch, and the networks that it trains.

    The function takes normalised images and labels. For ``dt`` it does a step of each of T blocks,
    each with a step of the readout; for the other methods one step.

    Args:
        method: ``dt``, ``ct``, ``fm``, ``backprop`` or ``adjoint``.
        shape: Shape of an image, (C, H, W).
        classes: Number m of classes; the embeddings are one-hot.
        steps: T of ``dt``, ``backprop`` and ``adjoint``.
    """
    make = {"dt": _dt, "backprop": _backprop, "ct": _ct, "fm": _fm, "adjoint": _adjoint}[method]
    return make(shape, classes, steps)


def _descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-3)


def _dt(shape: tuple[int, int, int], classes: int, steps: int) -> tuple[Turn, list[nn.Module]]:
    blocks = [PlainDiscrete(shape, classes) for _ in range(steps)]
    readout = nn.Linear(classes, classes)
    optimizers, last = [_adamw(block) for block in blocks], _adamw(readout)
    alpha_bar = cosine_alpha_bar(steps)
    snr = alpha_bar / (1 - alpha_bar)

    def turn(x: Tensor, y: Tensor) -> None:
        u = F.one_hot(y, classes).float()
        for t, (block, optimizer) in enumerate(zip(blocks, optimizers, strict=True)):
            z = alpha_bar[t].sqrt() * u + (1 - alpha_bar[t]).sqrt() * torch.randn_like(u)
            error = (block(z, x).softmax(1) - u).square().sum(1).mean()
            z = alpha_bar[-1].sqrt() * u + (1 - alpha_bar[-1]).sqrt() * torch.randn_like(u)
            loss = steps / 2 * ETA * (snr[t + 1] - snr[t]) * error
            _descend(loss + F.cross_entropy(readout(z), y), optimizer, last)

    return turn, [*blocks, readout]


def _ct(shape: tuple[int, int, int], classes: int, steps: int) -> tuple[Turn, list[nn.Module]]:
    """Train with fixed γ(t) = 6 - 12 t; ours learns its schedule, which costs a little more."""
    del steps
    network, readout = PlainContinuous(shape, classes), nn.Linear(classes, classes)
    optimizer = _adamw(nn.ModuleList([network, readout]))

    def turn(x: Tensor, y: Tensor) -> None:
        u, t = F.one_hot(y, classes).float(), torch.rand(len(y))
        gamma = (6 - 12 * t)[:, None]
        z = torch.sigmoid(-gamma).sqrt() * u + torch.sigmoid(gamma).sqrt() * torch.randn_like(u)
        error = (network(z, x, t).softmax(1) - u).square().sum(1)
        loss = (0.5 * 12 * torch.exp(-gamma[:, 0]) * error).mean()
        end = torch.sigmoid(torch.tensor(6.0))
        z = end.sqrt() * u + (1 - end).sqrt() * torch.randn_like(u)
        _descend(loss + F.cross_entropy(readout(z), y), optimizer)

    return turn, [network, readout]


def _fm(shape: tuple[int, int, int], classes: int, steps: int) -> tuple[Turn, list[nn.Module]]:
    del steps
    network, readout = PlainContinuous(shape, classes), nn.Linear(classes, classes)
    optimizer = _adamw(nn.ModuleList([network, readout]))

    def turn(x: Tensor, y: Tensor) -> None:
        u, t = F.one_hot(y, classes).float(), torch.rand(len(y))
        noise = torch.randn_like(u)
        z = t[:, None] * u + (1 - t[:, None]) * noise
        v = network(z, x, t)
        end = (z + (1 - t[:, None]) * v).detach()
        loss = (v - (u - noise)).square().sum(1).mean() + F.cross_entropy(readout(end), y)
        _descend(loss, optimizer)

    return turn, [network, readout]


def _backprop(
    shape: tuple[int, int, int], classes: int, steps: int
) -> tuple[Turn, list[nn.Module]]:
    blocks = nn.ModuleList(PlainDiscrete(shape, classes) for _ in range(steps))
    readout, w = nn.Linear(classes, classes), nn.Parameter(torch.full((steps,), 0.5).atanh())
    parameters = [*blocks.parameters(), *readout.parameters(), w]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3)

    def turn(x: Tensor, y: Tensor) -> None:
        z = torch.randn(len(y), classes)
        for alpha, block in zip(w.tanh(), blocks, strict=True):
            z = (1 - alpha) * z + alpha * block(z, x).softmax(1)
        _descend(F.cross_entropy(readout(z), y), optimizer)

    return turn, [*blocks, readout]


def _adjoint(shape: tuple[int, int, int], classes: int, steps: int) -> tuple[Turn, list[nn.Module]]:
    from torchdiffeq import odeint_adjoint

    network, readout = PlainContinuous(shape, classes), nn.Linear(classes, classes)
    network.image.eval()  # the adjoint method needs a field without dropout
    optimizer = _adamw(nn.ModuleList([network, readout]))

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.x = torch.empty(0)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.network(z, self.x, t.expand(len(z)))

    field = Field()

    def turn(x: Tensor, y: Tensor) -> None:
        field.x = x
        times, options = torch.tensor([0.0, 1.0]), {"step_size": 1 / steps}
        z = torch.randn(len(y), classes)
        levels = odeint_adjoint(field, z, times, method="euler", options=options)
        assert isinstance(levels, Tensor)
        _descend(F.cross_entropy(readout(levels[-1]), y), optimizer)

    return turn, [network, readout]


def _coefficients(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients a and b of Eq. 6 as printed; the mean chain does not need c."""
    snr = alpha_bar / (1 - alpha_bar)
    r = 1 - snr[:-1] / snr[1:]
    return alpha_bar[1:].sqrt() * r, (alpha_bar[1:] / alpha_bar[:-1]).sqrt() * (1 - r)


@torch.no_grad()
def plain_inference(
    method: str,
    networks: Sequence[nn.Module],
    x: Float[Tensor, "batch c h w"],
    steps: int,
    made: int | None = None,
) -> Float[Tensor, "batch dim"]:
    """Run the mean chain, with the features of x computed at every step.

    Args:
        method: Method, as in :func:`plain_training`.
        networks: The T blocks of ``dt`` and ``backprop``, or the network of other methods.
        x: Normalised images.
        steps: Length T of the chain.
        made: Number of steps to do, all of the same cost; all T unless given.

    Returns:
        The latent after the last step.
    """
    classes = [m for m in networks[0].modules() if isinstance(m, nn.Linear)][-1].out_features
    times = torch.linspace(0, 1, steps + 1)
    a, b = _coefficients(
        torch.sigmoid(12 * times - 6) if method == "ct" else cosine_alpha_bar(steps)
    )
    z = torch.zeros(len(x), classes)
    for i in range(steps if made is None else made):
        if method in ("dt", "backprop"):
            out = networks[i](z, x)
        else:
            out = networks[0](z, x, times[i].expand(len(x)))
        if method in ("dt", "ct"):
            z = a[i] * out.softmax(1) + b[i] * z
        elif method == "backprop":
            z = 0.5 * out.softmax(1) + 0.5 * z
        else:
            z = z + out / steps
    return z
