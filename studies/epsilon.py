"""What the clamp ε of the cosine schedule does to accuracy, on the validation part.

python studies/epsilon.py --dataset mnist --epochs 1 --seeds 1
"""

import argparse
import tempfile
from pathlib import Path

import noprop
from noprop.build import load_data
from noprop.config import replace
from noprop.schedules import alpha_bar, cosine_gamma

MODES = ("single", "mean", "path")


def main() -> None:
    """Train a run for every ε and seed, and print a row for every ε."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1e-8, 1e-6, 1e-4, 1e-3, 1e-2])
    arguments = parser.parse_args()
    print("accuracy % on the validation part, one value a seed: " + ", ".join(MODES))
    for epsilon in arguments.epsilon:
        gamma = cosine_gamma(arguments.blocks, epsilon=epsilon)
        ends = f"1 - ᾱ at T {float(alpha_bar(-gamma)[-1]):.2g}"
        found: dict[str, list[float]] = {mode: [] for mode in MODES}
        for seed in range(arguments.seeds):
            config = replace(
                noprop.RECIPES[f"{arguments.dataset}-dt"],
                {
                    "train.epochs": arguments.epochs,
                    "train.seed": seed,
                    "method.epsilon": epsilon,
                    "method.num_blocks": arguments.blocks,
                },
            )
            data = load_data(config, arguments.data_dir)
            with tempfile.TemporaryDirectory() as folder:
                model = noprop.train(config, folder=Path(folder) / "run", data=data)
            results = model.evaluate(arguments.data_dir, part="validation")
            for mode in MODES:
                found[mode].append(results["modes"][mode]["accuracy"])
        values = "  ".join(f"{mode} {' '.join(f'{v:.2f}' for v in found[mode])}" for mode in MODES)
        print(f"ε {epsilon:g}, {ends}: {values}", flush=True)


if __name__ == "__main__":
    main()
