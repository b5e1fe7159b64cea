"""What the clamp ε of the cosine schedule does to accuracy, on the validation part.

python studies/epsilon.py --dataset mnist --epochs 1 --seeds 1
"""

from collections.abc import Iterator

from noprop.config import replace
from noprop.recipes import RECIPES
from noprop.schedules import alpha_bar, cosine_gamma
from study import Line, Study, markdown, mean_and_error, train

MODES = ("single", "mean", "path")


def main() -> None:
    """Train a run for every ε and seed, and print a row for every ε."""
    study = Study(__doc__, "epsilon.jsonl", seeds=3)
    study.parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    study.parser.add_argument("--epochs", type=int, default=10)
    study.parser.add_argument("--blocks", type=int, default=10)
    study.parser.add_argument(
        "--epsilon", type=float, nargs="+", default=[1e-8, 1e-6, 1e-4, 1e-3, 1e-2]
    )
    options = study.parse()

    def measure(key: Line) -> Iterator[Line]:
        changes = {
            "train.epochs": key["epochs"],
            "train.seed": key["seed"],
            "method.epsilon": key["epsilon"],
            "method.num_blocks": key["blocks"],
        }
        config = replace(RECIPES[f"{key['dataset']}-dt"], changes)
        modes = train(config, options.data_dir).results["modes"]
        yield {"accuracy": {mode: modes[mode]["accuracy"] for mode in MODES}}

    common = {name: getattr(options, name) for name in ("dataset", "epochs", "blocks")}
    keys = [common | {"epsilon": epsilon} for epsilon in options.epsilon]
    study.measure((k | {"seed": seed} for k in keys for seed in range(options.seeds)), measure)
    rows = []
    for key in keys:
        if lines := study.lines(**key):
            gamma = cosine_gamma(options.blocks, epsilon=key["epsilon"])
            cells = [mean_and_error([line["accuracy"][mode] for line in lines]) for mode in MODES]
            end = f"{float(alpha_bar(-gamma)[-1]):.2g}"
            rows.append([f"{key['epsilon']:g}", end, str(len(lines)), *cells])
    print("accuracy in % on the validation part")
    print(markdown(["ε", "1 - ᾱ at T", "seeds", *MODES], rows))


if __name__ == "__main__":
    main()
