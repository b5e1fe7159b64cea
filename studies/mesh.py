"""Two processes against one where they must talk: W_Embed's gradient, or shards of a mini-batch.

    python studies/mesh.py                 # MNIST; a line for each in results/mesh.jsonl
    python studies/mesh.py --rounds 5

Seconds are those of training alone, of the slower process. The two take turns, and a ratio is of
one round. ``noprop bench scaling`` has processes that share nothing.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import noprop
from noprop.build import unit_names
from noprop.config import RunConfig, replace
from noprop.machine import describe_machine
from noprop.recipes import find_recipe
from noprop.training.events import Event, Started, Trained

IMAGES = 4096
COMMON = {"data.train_size": IMAGES, "train.epochs": 1, "train.checkpoint_every": 1e9}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "learned": ("mnist-dt-d20", {"train.order": "parallel"}),
    "shards": ("mnist-ct", {"train.shards": 2, "train.threads": 1}),
}


def seconds(config: RunConfig, workers: int) -> float:
    """Training time of the slower of the processes."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        noprop.train_units(
            Path(folder) / "r",
            unit_names(config),
            replace(config, {"train.workers": workers}),
            emit=events.append,
        )
    (started,) = [e for e in events if isinstance(e, Started)]
    assert started.workers == workers
    return max(e.seconds for e in events if isinstance(e, Trained))


def main() -> None:
    """Race, print, and append to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/mesh.jsonl"))
    arguments = parser.parse_args()
    for kind, (recipe, changes) in KINDS.items():
        config = replace(find_recipe(recipe), {**COMMON, **changes})
        rounds = [(seconds(config, 1), seconds(config, 2)) for _ in range(arguments.rounds)]
        ratios = [one / two for one, two in rounds]
        speeds = zip(*rounds, strict=True)
        about = describe_machine()
        result = {
            "kind": kind,
            "recipe": recipe,
            "images_per_second": [round(statistics.median(IMAGES / t for t in s)) for s in speeds],
            "two_over_one": [round(f(ratios), 3) for f in (statistics.median, min, max)],
            "rounds": arguments.rounds,
            "machine": {k: about[k] for k in ("processor", "cores", "torch", "commit")},
        }
        print(json.dumps(result))
        with arguments.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
