"""Peak memory of sequential NoProp-DT and of one backward pass through the same T blocks.

Each figure is the peak resident set (``ru_maxrss``) of a fresh process that trains two steps of
every block on made-up 28×28 images at batch 128, less that of a process that only imports and
holds the data. With ``--learned`` it is that of learned embeddings (d = 20), where all blocks are
trained in one process, with ``train.offload`` off and on; two epochs, so that every block has
waited in a file and come back, and the checkpoint at the end.

    python benchmarks/memory.py [--learned] [--blocks 5 10 20 40]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from noprop.build import Task, build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.methods.dt import DiscreteNoProp
from noprop.training.checkpoint import save_tensors
from noprop.training.loop import GroupTrainer
from noprop.training.optimizers import make_optimizer
from noprop.training.workers import Job, groups_of, train_groups

BATCH = 128
MODES = ("sequential", "backprop", "learned", "offload")


def peak_mb() -> float:
    """The largest resident set of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def train(mode: str, num_blocks: int) -> None:
    """Two steps of every block, in one way."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (2 * BATCH, 1, 28, 28), dtype=torch.uint8, generator=g)
    y = torch.randint(10, (2 * BATCH,), generator=g)
    config = replace(
        RunConfig(),
        {"method.num_blocks": num_blocks, "train.epochs": 1, "train.precision": "float32"},
    )
    task = Task((1, 28, 28), tuple("0123456789"), Normalization((0.13,), (0.31,)))
    embedding = build_embedding(config, task, None)
    if mode == "sequential":
        with tempfile.TemporaryDirectory() as folder:
            for t in range(1, num_blocks + 1):
                method = build_method(config, task, embedding, only=f"block-{t}")
                assert isinstance(method, DiscreteNoProp)
                trainer = GroupTrainer(
                    config,
                    method,
                    method.blocks,
                    Examples(x, y),
                    Examples(x[:0], y[:0]),
                    task.normalization,
                    bf16=False,
                    checkpoint=Path(folder) / f"{t}.safetensors",
                    emit=lambda event: None,
                )
                trainer.run()
    elif mode in ("learned", "offload"):
        changes = {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 20}
        changes |= {"train.epochs": 2, "train.device": "cpu", "train.offload": mode == "offload"}
        train_learned(replace(config, changes), task, Examples(x, y))
    elif mode == "backprop":
        method = build_method(config, task, embedding)
        assert isinstance(method, DiscreteNoProp)
        optimizer = make_optimizer(config.train, [p for u in method.units for p in u.parameters])
        k = method.coefficients.to("cpu", torch.float32)
        for batch in torch.arange(2 * BATCH).split(BATCH):
            images = task.normalization.apply(x[batch])
            z = torch.empty(BATCH, 10).normal_(generator=g)
            for i, block in enumerate(method.blocks):
                logits = block.network(z, block.network.context(images, g), g)
                z = k.a[i] * logits.softmax(dim=1) + k.b[i] * z
            cross_entropy(method.readout.readout(z, embedding.weight), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def train_learned(config: RunConfig, task: Task, train: Examples) -> None:
    """All blocks as one group, as a run trains it."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data.safetensors"
        empty = torch.arange(0)
        save_tensors(
            data,
            {
                "train/x": train.x,
                "train/y": train.y,
                "validation/x": train.x[empty],
                "validation/y": train.y[empty],
                "embedding": build_embedding(config, task, None).weight,
            },
            {},
        )
        job = Job(config, task, Path(name), data, "")
        train_groups(job, groups_of(config), 1, lambda event: None)


def measure(mode: str, num_blocks: int) -> float:
    """The peak of a process of its own, in MB."""
    command = [sys.executable, __file__, "--mode", mode, "--blocks", str(num_blocks)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--learned", action="store_true", help="of learned embeddings")
    parser.add_argument("--mode", choices=("none", *MODES), help="train in this process")
    arguments = parser.parse_args()
    if arguments.mode:
        train(arguments.mode, arguments.blocks[0])
        print(peak_mb())
        return
    nothing = measure("none", 1)
    modes = MODES[2:] if arguments.learned else MODES[:2]
    rows = [
        {"T": n} | {f"{mode}_mb": round(measure(mode, n) - nothing) for mode in modes}
        for n in arguments.blocks
    ]
    print(json.dumps({"imports_mb": round(nothing), "above_that": rows}, indent=1))


if __name__ == "__main__":
    main()
