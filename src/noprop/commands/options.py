"""Options that several commands have, as text and as what it means."""

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import cast

from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError

__all__ = ["encoder_or_field", "named_encoder", "parse_duration", "parse_seeds"]


def named_encoder(name: str | None) -> EncoderFactory | None:
    """The function that ``--encoder module:function`` names, on the user's own word alone."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--encoder wants MODULE:FUNCTION, got {name!r}: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module may raise: it may exit
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--encoder {name}: importing {module} failed: {words}") from error
    if not callable(factory):
        raise ConfigError(
            f"--encoder wants MODULE:FUNCTION, got {name!r}: {function} is "
            f"{type(factory).__name__}, not callable"
        )
    return cast("EncoderFactory", factory)


def encoder_or_field(arguments: argparse.Namespace) -> EncoderFactory | None:
    """The function that ``--encoder`` names; a built-in encoder is a field of the method."""
    if ":" in (arguments.encoder or ""):
        return named_encoder(arguments.encoder)
    setattr(arguments, "method.encoder", arguments.encoder)
    return None


def parse_seeds(text: str) -> list[int]:
    """Such as ``0..4`` or ``0,3,7``; both ends belong to a range."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        ends = [first, last] if dots else [first, first]
        if not all(re.fullmatch(r"\s*[0-9]{1,19}\s*", end) for end in ends):
            raise ConfigError(f"--seeds: wanted such as 0..4 or 0,3,7, got {text!r}")
        low, high = map(int, ends)
        if low > high:
            raise ConfigError(f"--seeds: the range {part.strip()} is empty; its ends are swapped")
        if high - low >= 100_000:
            raise ConfigError(f"--seeds: the range {part.strip()} has more than 100,000 seeds")
        seeds += range(low, high + 1)
    return seeds


def parse_duration(text: str, option: str) -> float:
    """Seconds of such as ``90s``, ``25m``, ``2h`` or ``1h30m``; a bare number is of seconds.

    Raises:
        ConfigError: If it is none; the message names ``option``.
    """
    match = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?", text.strip())
    if not text.strip() or not match:
        raise ConfigError(f"{option}: wanted such as 90s, 25m or 1h30m, got {text!r}")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds
