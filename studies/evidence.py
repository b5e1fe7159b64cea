"""What blocks learn of evidence that is known: their cross-entropy on the validation part.

A run with learned evidence and one with the exact term are trained alike. Three answers are scored
on the same latents of every level: the learned block's, the exact block's, and that of block 1 of
the learned run, which sees noise alone, with the exact term added.

    python studies/evidence.py mnist --epochs 10
    python studies/evidence.py cifar10 --epochs 20
    python studies/evidence.py mnist --table       # the results so far, as Markdown
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
from noprop.recipes import CROPS, RECIPES
from study import Line, Scored, Study, markdown, train

DRAWS = 5  # latents of each example and level
MODES = {"single": "one chain", "path-fitted": "path average", "mean": "mean chain"}


def config_of(dataset: str, evidence: str, blocks: int, epochs: int) -> Any:
    """Return the configuration of a run: cross-entropy, one cycle, random crops."""
    return replace(
        RECIPES[f"{dataset}-dt"],
        {
            "method.evidence": evidence,
            "method.num_blocks": blocks,
            "method.objective": "cross-entropy",
            "train.epochs": epochs,
            "train.schedule": "one-cycle",
            **CROPS.get(dataset, {}),
            "evaluation.runs": 2,
        },
    )


@torch.no_grad()
def levels(scored: Scored) -> list[dict[str, float]]:
    """Return each block's cross-entropy in nats, and that of block 1 with the exact evidence."""
    model, examples = scored.model, scored.validation
    method = model.method
    assert isinstance(method, DiscreteNoProp)
    draws, y = generator(0, "evidence"), examples.y
    contexts: list[Tensor] = prepare(model, inputs(model, examples.x))
    weight, gamma = method.embedding.weight, method.gamma.float()
    noise = torch.empty(len(y), weight.shape[1]).normal_(generator=draws)
    classifier = method.blocks[0].network(noise, contexts[0]).log_softmax(1)
    found = []
    for t, (block, context) in enumerate(zip(method.blocks, contexts, strict=True)):
        own = first = 0.0
        for _ in range(DRAWS):
            z = sample_latent(weight[y], gamma[t], draws)
            own += F.cross_entropy(block.logits(z, context), y).item() / DRAWS
            known = classifier + level_evidence(z, weight, gamma[t])
            first += F.cross_entropy(known, y).item() / DRAWS
        found.append({"alpha_bar": torch.sigmoid(-gamma[t]).item(), "own": own, "first": first})
    return found


def tables(lines: list[Line]) -> str:
    """Return the blocks' cross-entropies, and the accuracies in % of both runs."""
    by_kind = {line["evidence"]: line for line in lines}
    rows = [
        [str(t), f"{learned['alpha_bar']:.3f}", *(f"{v:.4f}" for v in (
            learned["own"], learned["first"], exact["own"]))]
        for t, (learned, exact) in enumerate(
            zip(by_kind["learned"]["blocks"], by_kind["exact"]["blocks"], strict=True), start=1)
    ]  # fmt: skip
    head = ["block", "ᾱ", "learned", "block 1 with exact evidence", "trained with exact evidence"]
    modes = [
        [kind, *(f"{line['modes'][m]['accuracy']:.2f}" for m in MODES), f"{line['seconds']:.0f}"]
        for kind, line in by_kind.items()
    ]
    return "\n\n".join([markdown(head, rows), markdown(["evidence", *MODES.values(), "s"], modes)])


def main() -> None:
    """Measure what is not measured yet, and print both tables."""
    study = Study(__doc__, "evidence.jsonl")
    study.parser.add_argument("dataset", choices=("digits", *CROPS))
    study.parser.add_argument("--epochs", type=int, default=20)
    study.parser.add_argument("--blocks", type=int, default=4, help="T")
    options = study.parse()
    run = {"dataset": options.dataset, "T": options.blocks, "epochs": options.epochs}

    def measure(key: Line) -> Iterator[Line]:
        config = config_of(options.dataset, key["evidence"], options.blocks, options.epochs)
        scored = train(config, options.data_dir)
        yield {
            "blocks": levels(scored),
            "modes": scored.results["modes"],
            "seconds": scored.seconds,
            "n": len(scored.validation),
        }

    study.measure([run | {"evidence": kind} for kind in ("learned", "exact")], measure)
    if len(lines := study.lines(**run)) > 1:
        print(tables(lines))


if __name__ == "__main__":
    main()
