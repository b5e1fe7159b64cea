"""Which gradient the exact evidence should pass to learned embeddings, on the validation part.

The evidence of a latent is a function of the latent z and of the rows u_y that it is compared with;
both are made of W_Embed. The package passes a gradient through z alone. Here NoProp-DT is trained
with each choice, on digits, in this process.

    python studies/embedding_gradient.py --seeds 5
    python studies/embedding_gradient.py --seeds 5 --table     # the results so far, as Markdown
"""

from collections.abc import Callable, Iterator
from unittest.mock import patch

from torch import Tensor

from noprop.config import replace
from noprop.evidence import level_evidence
from noprop.methods.chains import float32_or_64
from noprop.methods.dt import Block
from noprop.recipes import RECIPES
from study import Line, Study, markdown, mean_and_error, train

LEARNED = "evidence is learned"
# Whether the gradient passes through z and through the rows.
KINDS = {"through z": (True, False), "none": (False, False), "through z and rows": (True, True)}


def logits(through_z: bool, through_rows: bool) -> Callable[..., Tensor]:
    """Return a method in place of :meth:`Block.logits`, with exact evidence."""

    def function(
        self: Block,
        z: Tensor,
        context: Tensor,
        generator: object = None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        gamma, weight = self.gamma if gamma is None else gamma, self.embedding.weight
        weight = weight if through_rows else weight.detach()
        known = level_evidence(z if through_z else z.detach(), weight, gamma)
        return float32_or_64(self.network(z, context, generator)) + known

    return function


def measure(key: Line) -> Iterator[Line]:
    """Train with one choice, and score the default prediction on the validation part."""
    exact = key["gradient"] != LEARNED
    fields = {
        "method.evidence": "exact" if exact else "learned",
        "data.validation": 0.2,
        "train.workers": 1,  # in this process, where the method is replaced
        "train.seed": key["seed"],
    }
    own = logits(*KINDS[key["gradient"]]) if exact else Block.logits
    with patch.object(Block, "logits", own):
        scored = train(replace(RECIPES["digits-dt-d20"], fields))
    best = scored.results["modes"][scored.results["default"]]
    yield {
        "accuracy": best["accuracy"],
        "log_loss": best["log_loss"],
        "n": len(scored.validation),
        "bf16": scored.model.bf16,
    }


def table(lines: list[Line]) -> str:
    """Return accuracies in % and log-losses in nats of each choice, over the seeds."""
    rows = []
    for kind in (*KINDS, LEARNED):
        mine = [line for line in lines if line["gradient"] == kind]
        if mine:
            losses = ", ".join(f"{line['log_loss']:.3f}" for line in mine)
            mean = mean_and_error([line["log_loss"] for line in mine], 3)
            rows.append([kind, losses, mean, mean_and_error([m["accuracy"] for m in mine])])
    head = ["gradient of the evidence to W_Embed", "log-loss of each seed", "mean", "accuracy in %"]
    return markdown(head, rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    study = Study(__doc__, "embedding-gradient.jsonl", seeds=5, variants=(*KINDS, LEARNED))
    options = study.parse()
    keys = [{"gradient": kind, "seed": s} for s in range(options.seeds) for kind in options.only]
    study.measure(keys, measure)
    if lines := study.lines():
        print(table(lines))


if __name__ == "__main__":
    main()
