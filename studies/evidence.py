"""What networks learn of evidence that is known, on the validation part.

A run with learned evidence, one with the exact term, one whose networks read x alone, and one that
trains these on pure noise are trained alike. For NoProp-DT the answers of each run's blocks are
scored on the same latents of every level, and those of block 1 of the learned run, which sees noise
alone, with the exact term added.

    python studies/evidence.py mnist --epochs 10
    python studies/evidence.py mnist --method ct --epochs 8
    python studies/evidence.py mnist --method ct --epochs 8 --steps 1000 --only noise
    python studies/evidence.py mnist --epochs 10 --table       # the results so far, as Markdown
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noprop.config import replace
from noprop.diffusion import sample_latent
from noprop.evaluate import inputs, prepare
from noprop.evidence import level_evidence
from noprop.methods.dt import DiscreteNoProp
from noprop.randomness import generator
from noprop.recipes import CLASSIFIERS, CROPS, RECIPES
from study import MODES, Line, Scored, Study, markdown, score, train

DRAWS = 5  # latents of each example and level
# Name and default of the field with T.
LENGTH = {"dt": ("num_blocks", 4), "ct": ("steps", 100), "fm": ("steps", 100)}
LEARNED: dict[str, Any] = {
    "method.evidence": "learned",
    "method.network_reads": "x and z",
    "method.train_levels": "all",
}
NAMES = {
    "learned": "learned",
    "exact": "exact",
    "exact-x": "exact, x alone",
    "noise": "exact, x alone, trained on noise",
}
KINDS: dict[str, dict[str, Any]] = {
    "learned": LEARNED,
    "exact": LEARNED | {"method.evidence": "exact"},
    "exact-x": CLASSIFIERS | {"method.train_levels": "all"},
    "noise": CLASSIFIERS,
}


def config_of(dataset: str, method: str, evidence: str, steps: int, epochs: int) -> Any:
    """Return the configuration of a run: the best settings of each method, one cycle, crops."""
    return replace(
        RECIPES[f"{dataset}-{method}-best"],
        {
            **KINDS[evidence],
            f"method.{LENGTH[method][0]}": steps,
            "train.epochs": epochs,
            "train.schedule": "one-cycle",
            **CROPS.get(dataset, {}),
            "evaluation.runs": 2,
        },
    )


def levels(scored: Scored) -> list[dict[str, float]]:
    """Return :func:`levels_of` a run on the validation part; none of a method without blocks."""
    model, examples = scored.model, scored.validation
    if not isinstance(model.method, DiscreteNoProp):
        return []
    contexts: list[Tensor] = prepare(model, inputs(model, examples.x))
    return levels_of(model.method, contexts, examples.y)


@torch.no_grad()
def levels_of(method: DiscreteNoProp, contexts: list[Tensor], y: Tensor) -> list[dict[str, float]]:
    """Return each block's cross-entropy in nats, and that of block 1 with the exact evidence.

    Both are scored on the same latents, and block 1 reads those of its own level, drawn once for
    each draw. ``difference`` is own minus first, with its standard error over the examples.

    Args:
        method: NoProp-DT with all of its blocks.
        contexts: What each block takes from x.
        y: Labels.
    """
    draws = generator(0, "evidence")
    weight, gamma = method.embedding.weight, method.gamma.float()
    own = torch.zeros(len(method.blocks), len(y))
    first, classifier = torch.zeros_like(own), own[0]
    for _ in range(DRAWS):
        for t, (block, context) in enumerate(zip(method.blocks, contexts, strict=True)):
            z = sample_latent(weight[y], gamma[t], draws)
            if t == 0:
                classifier = block.network(z, context).float().log_softmax(1)
            known = classifier + level_evidence(z, weight, gamma[t])
            own[t] += F.cross_entropy(block.logits(z, context), y, reduction="none") / DRAWS
            first[t] += F.cross_entropy(known, y, reduction="none") / DRAWS
    return [
        {
            "alpha_bar": torch.sigmoid(-gamma[t]).item(),
            "own": own[t].mean().item(),
            "first": first[t].mean().item(),
            "difference": (own[t] - first[t]).mean().item(),
            "difference_se": (own[t] - first[t]).std().item() / len(y) ** 0.5,
        }
        for t in range(len(method.blocks))
    ]


def tables(lines: list[Line]) -> str:
    """Return the blocks' cross-entropies in nats, and accuracies in % and log-losses of all runs.

    In brackets behind a block's cross-entropy is how much higher it is than that of block 1 of the
    same run with the exact evidence of the block's level.
    """
    by_kind = {line["evidence"]: line for line in lines}
    by_kind = {kind: by_kind[kind] for kind in KINDS if kind in by_kind}
    blocks = {kind: line["blocks"] for kind, line in by_kind.items()}
    rows = []
    for t, level in enumerate(next(iter(blocks.values()))):
        own = [(run[t]["own"], run[t]["own"] - run[t]["first"]) for run in blocks.values()]
        cells = [f"{value:.4f}" + (f" ({more:+.4f})" if t else "") for value, more in own]
        rows.append([str(t + 1), f"{level['alpha_bar']:.3f}", *cells])
    head = ["block", "ᾱ", *(NAMES[kind] for kind in blocks)]
    modes = [
        [
            NAMES[kind],
            *(score(line["modes"][mode]) for mode in MODES),
            score(line["modes"]["path-fitted"], "log_loss", 4),
            score(line["modes"]["mean-path-fitted"], "log_loss", 4),
        ]
        for kind, line in by_kind.items()
    ]
    made = [markdown(head, rows)] if rows else []
    losses = ["log-loss, path average", "log-loss, mean chain, path"]
    return "\n\n".join([*made, markdown(["evidence", *MODES.values(), *losses], modes)])


def main() -> None:
    """Measure what is not measured yet, and print both tables."""
    study = Study(__doc__, "evidence.jsonl", variants=KINDS)
    study.parser.add_argument("dataset", choices=("digits", *CROPS))
    study.parser.add_argument("--method", choices=tuple(LENGTH), default="dt")
    study.parser.add_argument("--epochs", type=int, default=20)
    study.parser.add_argument("--steps", type=int, help="T [4 for dt, else 100]")
    options = study.parse()
    steps = options.steps or LENGTH[options.method][1]
    run = {"dataset": options.dataset, "method": options.method}
    run |= {"T": steps, "epochs": options.epochs}

    def measure(key: Line) -> Iterator[Line]:
        config = config_of(options.dataset, options.method, key["evidence"], steps, options.epochs)
        scored = train(config, options.data_dir)
        yield {
            "blocks": levels(scored),
            "modes": scored.results["modes"],
            "seconds": scored.seconds,
            "n": len(scored.validation),
            "bf16": scored.model.bf16,
        }

    study.measure([run | {"evidence": kind} for kind in options.only], measure)
    if lines := study.lines(**run):
        print(tables(lines))


if __name__ == "__main__":
    main()
