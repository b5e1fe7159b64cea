"""Image paths: from x to the features that a block reads (Fig. 5).

They are the convolutions of Fig. 5, deeper ones with batch norm, smaller ones for smaller images,
an MLP for tables, or a user's own module.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noprop.errors import ConfigError
from noprop.layers import DropoutKind, ReLUDropout, Sequence, stochastic_call
from noprop.randomness import seeded

__all__ = [
    "WIDTH",
    "CustomEncoder",
    "EncoderFactory",
    "EncoderKind",
    "Features",
    "conv_bn_path",
    "conv_path",
    "encoder_kind",
    "image_layers",
    "mlp_path",
    "small_conv_path",
    "trimmed_size",
]

WIDTH = 256

EncoderKind = Literal["auto", "conv", "conv-bn", "small", "mlp", "custom"]
EncoderFactory = Callable[[], nn.Module]


def conv_path(
    channels: int, size: tuple[int, int], dropout: float, kind: DropoutKind = "feature"
) -> Sequence:
    """Build the convolutions of Fig. 5: 2048 features of 28×28, 3200 of 32×32, 6400 of 64×64.

    3×3 without padding: C→32, pool; 32→64; 64→128, pool; and from 48 pixels up 128→256, pool.

    Pooling rounds down, so the last rows and columns of most sizes affect no feature. The input is
    trimmed to the others, which changes no output and saves a tenth of the work. Pooling comes
    before the ReLU, with which it commutes.
    """
    deep = min(size) >= 48
    height, width = (trimmed_size(side, deep=deep) for side in size)
    layers: list[nn.Module] = [
        Trim(height, width),
        nn.Conv2d(channels, 32, 3),
        ReLUDropout(dropout, pool=True, kind=kind),
        nn.Conv2d(32, 64, 3),
        ReLUDropout(dropout, kind=kind),
        nn.Conv2d(64, 128, 3),
        ReLUDropout(dropout, pool=True, kind=kind),
    ]
    if deep:
        layers += [nn.Conv2d(128, 256, 3), ReLUDropout(dropout, pool=True, kind=kind)]
    return Sequence(*layers, nn.Flatten())


def trimmed_size(side: int, *, deep: bool) -> int:
    """Return how many of ``side`` pixels affect an output of :func:`conv_path`.

    Raises:
        ValueError: If the image is too small for Fig. 5.
    """
    pools_to = [((side - 2) // 2) - 4]
    if deep:
        pools_to.append(pools_to[0] // 2 - 2)
    out = pools_to[-1] // 2
    if out < 1:
        raise ValueError(f"the convolutions of Fig. 5 need at least 14 pixels a side, got {side}")
    needed = 2 * out
    if deep:
        needed = 2 * (needed + 2)
    return 2 * (needed + 4) + 2


CONV_BN_WIDTHS = ((32, True), (64, True), (128, False), (128, True), (256, True))


def conv_bn_path(
    channels: int, size: tuple[int, int], dropout: float, kind: DropoutKind = "feature"
) -> Sequence:
    """Build five convolutions with batch norm: 256 features of 28×28, 1024 of 32×32.

    3×3 with padding: C→32, pool; 32→64, pool; 64→128; 128→128, pool; 128→256, pool. Differs from
    the paper, which has Fig. 5: a block of about as many parameters has two thirds of them in
    convolutions, where Fig. 5 has nine tenths in the layer after them.

    Raises:
        ValueError: If the image has fewer than 16 pixels a side.
    """
    if min(size) < 16:
        raise ValueError(f"encoder conv-bn needs at least 16 pixels a side, got {min(size)}")
    layers: list[nn.Module] = []
    for width, pool in CONV_BN_WIDTHS:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            ReLUDropout(dropout, pool=pool, kind=kind),
        ]
        channels = width
    return Sequence(*layers, nn.Flatten())


def small_conv_path(
    channels: int, size: tuple[int, int], dropout: float, kind: DropoutKind = "feature"
) -> Sequence:
    """Build convolutions for images too small for Fig. 5: 3×3 with padding, C→32→64, pool."""
    if min(size) < 2:
        raise ValueError(f"the small convolutions need at least 2 pixels a side, got {min(size)}")
    return Sequence(
        nn.Conv2d(channels, 32, 3, padding=1),
        ReLUDropout(dropout, kind=kind),
        nn.Conv2d(32, 64, 3, padding=1),
        ReLUDropout(dropout, pool=True, kind=kind),
        nn.Flatten(),
    )


def mlp_path(features: int, dropout: float) -> Sequence:
    """Build an MLP for flat inputs: two layers of 256 with batch norm, ReLU and dropout."""
    return Sequence(
        nn.Flatten(),
        nn.Linear(features, WIDTH),
        nn.BatchNorm1d(WIDTH),
        ReLUDropout(dropout),
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH),
        ReLUDropout(dropout),
    )


def encoder_kind(shape: tuple[int, ...]) -> EncoderKind:
    """Return the path for inputs of one shape: Fig. 5 from 14 pixels a side, small, or an MLP."""
    if len(shape) != 3:
        return "mlp"
    return "conv" if min(shape[1:]) >= 14 else "small"


class Trim(nn.Module):
    """Keep the first ``height`` rows and ``width`` columns."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h2 w2"]:
        """Return a view of the trimmed images."""
        return x[:, :, : self.height, : self.width]


class CustomEncoder(nn.Module):
    """User's own module x → features, in place of the convolutions.

    Its dropout and other randomness can only draw from torch's global generators. These are seeded
    from the block's generator for each call, and restored after it.
    """

    takes_generator = True

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None
    ) -> Float[Tensor, "batch features"]:
        """Return the module's features, flattened to (B, F)."""
        if generator is None or not self.training:
            return self._features(x)
        drawn = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        with seeded(int(drawn), x.device):
            return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        try:
            return self.module(x).flatten(1)
        except (Exception, SystemExit) as error:  # a user's code may raise anything, or exit
            raise ConfigError(
                f"the encoder fails on a batch of shape {tuple(x.shape)}: {_words_of(error)}"
            ) from error


class Features(nn.Module):
    """Image path with the FC 256 on top, then batch norm (DT) or ReLU (CT, FM).

    Args:
        shape: Shape of one input, (C, H, W) or (F,).
        kind: Kind of path; ``auto`` chooses by the shape, ``custom`` calls ``factory``.
        dropout: Probability that a feature is dropped, in [0, 1).
        batch_norm: Whether batch norm or ReLU follows the FC layer.
        factory: Function that returns a new encoder of the user at each call.
        dropout_kind: Whether convolutions drop features or whole channels.

    Raises:
        ValueError: If the kind does not suit the shape, or a user's encoder does not return (B, F)
            features.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        kind: EncoderKind = "auto",
        dropout: float = 0.2,
        batch_norm: bool = True,
        factory: EncoderFactory | None = None,
        dropout_kind: DropoutKind = "feature",
    ):
        super().__init__()
        self.takes_generator = True
        self.encoder = _encoder(shape, kind, dropout, factory, dropout_kind)
        self.project = nn.Linear(_feature_count(self.encoder, shape), WIDTH)
        self.finish = nn.BatchNorm1d(WIDTH) if batch_norm else nn.ReLU()

    def forward(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch width"]:
        """Return features of shape (B, 256)."""
        return self.finish(self.project(stochastic_call(self.encoder, x, generator)))


def image_layers(
    shape: tuple[int, ...],
    *,
    kind: EncoderKind = "auto",
    dropout: float = 0.2,
    factory: EncoderFactory | None = None,
    dropout_kind: DropoutKind = "feature",
) -> list[Sequence]:
    """Build the image path with the FC 256 and ReLU on top, cut into its layers.

    Each layer has one convolution or product, and what follows it up to the next one: batch norm,
    pool, ReLU, dropout. A user's encoder is one layer. Arguments and errors as for
    :class:`Features`.
    """
    encoder = _encoder(shape, kind, dropout, factory, dropout_kind)
    path = [encoder] if isinstance(encoder, CustomEncoder) else [*encoder.children()]
    top = [nn.Linear(_feature_count(encoder, shape), WIDTH), nn.ReLU()]
    weighted = nn.Conv2d | nn.Linear | CustomEncoder
    layers: list[list[nn.Module]] = [[]]
    for module in [*path, *top]:
        if isinstance(module, weighted) and any(isinstance(m, weighted) for m in layers[-1]):
            layers.append([])
        layers[-1].append(module)
    return [Sequence(*layer) for layer in layers]


def _encoder(
    shape: tuple[int, ...],
    kind: EncoderKind,
    dropout: float,
    factory: EncoderFactory | None,
    dropout_kind: DropoutKind,
) -> nn.Module:
    if kind == "auto":
        kind = "custom" if factory else encoder_kind(shape)
    if kind == "custom":
        if factory is None:
            raise ValueError("encoder 'custom' needs a function that makes the encoder; none given")
        return CustomEncoder(_made_by(factory))
    if kind == "mlp":
        return mlp_path(math.prod(shape), dropout)
    if len(shape) != 3:
        raise ValueError(f"encoder {kind!r} needs images (C, H, W), got inputs of shape {shape}")
    paths = {"conv": conv_path, "conv-bn": conv_bn_path, "small": small_conv_path}
    return paths[kind](shape[0], (shape[1], shape[2]), dropout, dropout_kind)


def _made_by(factory: EncoderFactory) -> nn.Module:
    """Call a user's function, and check that it returns a module."""
    try:
        module = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's code may raise anything, or exit
        raise ValueError(f"making the encoder failed: {_words_of(error)}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"the encoder must be an nn.Module, got {type(module).__name__}")
    return module


def _feature_count(encoder: nn.Module, shape: tuple[int, ...]) -> int:
    # The user's own module is called: its wrapper relies on the shape that is checked here.
    module = encoder.module if isinstance(encoder, CustomEncoder) else encoder
    training = module.training
    try:
        with torch.no_grad():
            features = module.eval()(torch.zeros(2, *shape))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's code may raise anything, or exit
        raise ValueError(
            f"the encoder fails on a batch of shape {(2, *shape)}: {_words_of(error)}"
        ) from error
    module.train(training)
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the encoder must give features (B, F) of real numbers, got {kind}")
    if features.ndim < 2 or features.shape[0] != 2 or features.numel() == 0:
        raise ValueError(
            f"the encoder must give features (B, F), got {tuple(features.shape)} from a batch of 2"
        )
    return features[0].numel()


def _words_of(error: BaseException) -> str:
    """Describe an error of a user's own code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
