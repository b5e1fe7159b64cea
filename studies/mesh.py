"""Two processes compared with one where they must talk: W_Embed's gradient, or shards of a batch.

    python studies/mesh.py                 # MNIST; a line for each in results/mesh.jsonl
    python studies/mesh.py --rounds 5

Seconds are those of training alone, of the slower process. One and two processes take turns, and a
ratio is of one round. Every call measures again: the speed is that of this machine. The processes
of ``noprop bench scaling`` share nothing.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import noprop
from noprop.config import RunConfig, replace
from noprop.recipes import find_recipe
from noprop.training.events import Event, Started, Trained
from study import Study

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "learned": ("mnist-dt-d20", {"train.order": "parallel"}),
    "shards": ("mnist-ct", {"train.shards": 2, "train.threads": 1}),
}


def seconds(config: RunConfig, workers: int, data_dir: Path | None) -> float:
    """Return the training time of the slower of the processes."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        noprop.train_units(
            Path(folder) / "r",
            config.method.unit_names,
            replace(config, {"train.workers": workers}),
            data_dir=data_dir,
            emit=events.append,
        )
    (started,) = [e for e in events if isinstance(e, Started)]
    assert started.workers == workers
    return max(e.seconds for e in events if isinstance(e, Trained))


def main() -> None:
    """Race, print, and append to the results."""
    study = Study(__doc__, "mesh.jsonl", variants=KINDS)
    study.parser.add_argument("--rounds", type=int, default=5)
    study.parser.add_argument("--images", type=int, default=4096)
    options = study.parse()
    common = {"data.train_size": options.images, "train.epochs": 1, "train.checkpoint_every": 1e9}
    for kind in () if options.table else options.only:
        recipe, changes = KINDS[kind]
        config = replace(find_recipe(recipe), {**common, **changes})
        rounds = [
            [seconds(config, workers, options.data_dir) for workers in (1, 2)]
            for _ in range(options.rounds)
        ]
        ratios = [one / two for one, two in rounds]
        speeds = [[options.images / t for t in times] for times in zip(*rounds, strict=True)]
        line = {
            "kind": kind,
            "recipe": recipe,
            "images_per_second": [round(statistics.median(s)) for s in speeds],
            "two_over_one": [round(f(ratios), 3) for f in (statistics.median, min, max)],
            "rounds": options.rounds,
        }
        study.append(line)
    for line in study.lines():
        print(json.dumps(line))


if __name__ == "__main__":
    main()
