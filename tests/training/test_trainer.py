"""The numbered updates of a group, and that a stop at any of them changes nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import noprop
import tools
from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, batch_indices
from noprop.errors import ConfigError, RunError, TrainingError
from noprop.layers import channels_last
from noprop.methods.base import LossTerms
from noprop.methods.dt import DiscreteNoProp
from noprop.randomness import generator
from noprop.training import trainer as trainer_module
from noprop.training.commits import LAST, PREVIOUS, read_commit
from noprop.training.events import Epoch, Event, Progress, Trained
from noprop.training.optimizers import Optimizer, optimizer_state
from noprop.training.plan import Update
from noprop.training.trainer import Trainer
from tools import (
    IN_PROCESS,
    NOISE,
    NOISE_TASK,
    Clock,
    Killed,
    assert_same,
    commit_of,
    files_of,
    weights,
)

FIXED: dict[str, object] = {}
LEARNED = {**tools.LEARNED, "method.dim": 6}
SMALL = {**IN_PROCESS, "method.num_blocks": 2, "train.epochs": 2, "train.batch_size": 16}


def quiet(event: Event) -> None:
    """Listen to nothing."""


def trainer(folder: Path, emit=quiet, only: str | None = None, /, **changes):
    """A trainer of all units, or of one, on 72 noise images: four mini-batches and a remainder."""
    config = replace(RunConfig(), {**SMALL, **changes})
    method = build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))
    assert isinstance(method, DiscreteNoProp)
    units = [u for u in method.units if only in (None, u.name)]
    return Trainer(
        config, method, units, NOISE, NOISE.take(torch.arange(8)), NOISE_TASK.normalization,
        bf16=False, folder=folder / "units" / (only or "all"), emit=emit,
    )  # fmt: skip


def trained(folder: Path, only: str | None = None, /, **changes) -> dict[str, Tensor]:
    made = trainer(folder, quiet, only, **changes)
    made.run()
    return weights_of(folder)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the one group that is here, by its name."""
    return {name.partition(":")[2]: tensor for name, tensor in weights(folder).items()}


def test_a_method_without_weights_of_examples_refuses_them(tmp_path: Path):
    config = replace(RunConfig(), {**IN_PROCESS, "method.name": "ff"})
    method = build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))
    with pytest.raises(ConfigError, match="weights: not for ff: its layers compare"):
        Trainer(
            config, method, method.units, NOISE, NOISE, NOISE_TASK.normalization,
            bf16=False, folder=tmp_path, emit=quiet, weights=torch.ones(len(NOISE)),
        )  # fmt: skip


# -- the list of updates -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_each_epoch_has_every_unit_on_every_batch(tmp_path, order):
    """No update is missing or doubled; the readout passes once a block in Algorithm 1."""
    made = trainer(tmp_path, **{"train.order": order})
    seen = Counter(made.plan.at(i) for i in range(made.plan.total))
    passes = [1, 1, 2 if order == "sequential" else 1]
    wanted = {
        Update(epoch, index, turn, batch)
        for epoch in range(2)
        for index in range(3)
        for turn in range(passes[index])
        for batch in range(4)
    }
    assert set(seen) == wanted
    assert set(seen.values()) == {1}
    places = [(u.epoch, u.unit) for u in (made.plan.at(i) for i in range(made.plan.total))]
    if order == "sequential":
        assert places == sorted(places)
    else:
        assert places[:6] == [(0, 0), (0, 1), (0, 2), (0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("embedding", [FIXED, LEARNED], ids=["fixed", "learned"])
def test_work_counts_the_updates_that_read_images(tmp_path, order, embedding):
    """One by one: the readout's, which take no time, leave the count where it is."""
    made = trainer(tmp_path, **embedding, **{"train.order": order})
    count = 0
    for position in range(made.plan.total):
        assert made.plan.work(position) == count
        count += made.units[made.plan.at(position).unit].reads_images
    assert made.plan.work(made.plan.total) == count == 2 * 2 * 4
    alone = trainer(tmp_path, quiet, "readout", **{"train.order": order})
    assert alone.plan.work(alone.plan.total) == alone.plan.total


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_which_examples_each_unit_sees(tmp_path, monkeypatch, order):
    """Parallel: one shuffle for all units. Sequential: each unit its own. Both: new each epoch."""
    made = trainer(tmp_path, **{"train.order": order})
    seen: dict[str, list[tuple[int, ...]]] = {unit.name: [] for unit in made.units}
    for unit in made.units:

        def loss(x, y, g, unit=unit, real=unit.loss):
            if torch.is_grad_enabled():
                seen[unit.name].append(tuple(y.tolist()))
            return real(x, y, g)

        monkeypatch.setattr(unit, "loss", loss)
    made.run()
    first, second, readout = seen.values()
    assert first[:4] != first[4:]
    if order == "parallel":
        assert first == second == readout
    else:
        assert first != second
        assert len(readout) == 2 * len(first)
    indices = [made.indices(made.plan.at(i)) for i in range(made.plan.total)]
    for batches in (indices[:4],) if order == "sequential" else (indices[:12:3],):
        drawn = torch.cat(batches)
        assert len(drawn.unique()) == len(drawn) == 64


def test_with_shared_embeddings_the_readout_steps_beside_every_block(tmp_path):
    """Block, readout, block, …: each pair on one mini-batch, and shared weights move after it."""
    made = trainer(tmp_path, **LEARNED, **{"train.order": "sequential"})
    updates = [made.plan.at(i) for i in range(made.plan.total)]
    places = [(u.epoch, u.unit, u.turn, u.batch) for u in updates]
    wanted = [
        place
        for epoch in range(2)
        for t in range(2)
        for batch in range(4)
        for place in ((epoch, t, 0, batch), (epoch, 2, t, batch))
    ]
    assert places == wanted
    for block, readout in zip(updates[::2], updates[1::2], strict=True):
        assert torch.equal(made.indices(block), made.indices(readout))
    assert [made.plan.begins_mini_batch(i) for i in range(4)] == [True, False, True, False]


def test_with_shared_embeddings_training_is_algorithm_1(tmp_path):
    """Eq. 61 written out: one loss a mini-batch of block t, three optimizers, bit for bit.

    Trained block after block and the readout last, the embeddings would collapse meanwhile.
    """
    changes = {**LEARNED, "train.order": "sequential", "method.num_blocks": 3, "train.seed": 4}
    found = trained(tmp_path, **changes)
    config = replace(RunConfig(), {**SMALL, **changes})
    method = build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))
    assert isinstance(method, DiscreteNoProp)
    optimizers = {
        name: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3, fused=True)
        for name, parameters in (
            *((unit.name, unit.parameters) for unit in method.units),
            ("shared", method.shared_parameters),
        )
    }
    for epoch in range(2):
        for t, block in enumerate(method.blocks):
            order = batch_indices(len(NOISE), 16, generator(4, "order", epoch, block.name))
            for batch, chosen in enumerate(order):
                x = NOISE_TASK.normalization.apply(NOISE.x[chosen])
                x = channels_last(x)
                y, turn = NOISE.y[chosen], 3 * epoch + t
                own = generator(4, "step", 4 * epoch + batch, block.name)
                beside = generator(4, "step", 4 * turn + batch, "readout")
                terms = method.readout.loss(x[:0], y, beside).terms
                (block.loss(x, y, own).total + sum(terms.values())).backward()
                for name in (block.name, "readout", "shared"):
                    optimizers[name].step()
                    optimizers[name].zero_grad()
    torch.testing.assert_close(
        found["shared/weight"], method.embedding.weight.detach(), rtol=1e-5, atol=1e-7
    )
    for unit in method.units:
        for name, value in unit.module.state_dict().items():
            torch.testing.assert_close(
                found[f"{unit.name}/module/{name}"], value, rtol=1e-4, atol=1e-6
            )


@pytest.mark.slow
def test_learned_classes_stay_apart_through_the_last_block(tmp_path):
    """Block T draws them together, and only a readout that does not tell them yet holds them.

    On digits, 162 mini-batches a block, least distances after blocks 1 to 4 and what one chain
    scores: 1.56, 1.97, 1.44, 0.43 and 73 % with the default start of the readout; 1.03, 0.79,
    0.55, 0.017 and 52 % where it starts as the nearest embedding.
    """
    changes: dict[str, Any] = {
        **LEARNED, "method.dim": 20, "method.encoder": "mlp", "method.num_blocks": 4,
        "train.batch_size": 8, "train.epochs": 1, "evaluation.runs": 1, "evaluation.samples": 1,
        **IN_PROCESS,
    }  # fmt: skip
    events: list[Event] = []
    folder = tmp_path / "run"
    noprop.train("digits-dt", folder=folder, overrides=changes, emit=events.append)
    epochs = [e for e in events if isinstance(e, Epoch) and e.unit != "readout"]
    assert [e.unit for e in epochs] == [f"block-{t}" for t in (1, 2, 3, 4)]
    assert min(e.embedding["least_distance"] for e in epochs if e.embedding) > 0.3
    modes = json.loads((folder / "evaluation.json").read_text())["modes"]
    assert modes["single"]["accuracy"] > 65


def test_unit_by_unit_is_algorithm_1(tmp_path):
    """Training each unit to its end equals the loop of Algorithm 1, written out, bit for bit.

    For each epoch, each block, each mini-batch: the block descends its term, the readout its own.
    """
    changes = {"train.order": "sequential", "method.num_blocks": 3, "train.seed": 4}
    found: dict[str, Tensor] = {}
    for name in ("block-1", "block-2", "block-3", "readout"):
        found |= trained(tmp_path / name, name, **changes)

    config = replace(RunConfig(), {**SMALL, **changes})
    method = build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))
    assert isinstance(method, DiscreteNoProp)
    optimizers = {
        unit.name: torch.optim.AdamW(unit.parameters, lr=1e-3, weight_decay=1e-3, fused=True)
        for unit in method.units
    }

    def descend(unit, turn: int, batch: int) -> None:
        order = batch_indices(len(NOISE), 16, generator(4, "order", turn, unit.name))
        chosen = order[batch]
        x = channels_last(NOISE_TASK.normalization.apply(NOISE.x[chosen]))
        draws = generator(4, "step", 4 * turn + batch, unit.name)
        unit.loss(x, NOISE.y[chosen], draws).total.backward()
        optimizers[unit.name].step()
        optimizers[unit.name].zero_grad()

    for epoch in range(2):
        for t, block in enumerate(method.blocks):
            for batch in range(4):
                descend(block, epoch, batch)
                descend(method.readout, 3 * epoch + t, batch)
    for unit in method.units:
        for name, value in unit.module.state_dict().items():
            assert torch.equal(found[f"{unit.name}/module/{name}"], value), (unit.name, name)


def test_shared_embeddings_descend_the_gradient_of_eq_8(tmp_path):
    """Parallel order, first mini-batch: W_Embed's gradient is that of Σ_t L_t / T + L_readout.

    SGD at lr 1 without decay shows the gradient as the difference of the weights. A readout that
    starts far ahead has hardly a gradient, and block T under ``snr`` has a thousand times the
    others': neither would show a wrong share of the others.
    """
    sgd: dict[str, Any] = {"train.optimizer": "sgd", "train.lr": 1.0, "train.weight_decay": 0.0}
    alike = {"method.readout_start": "random", "method.weighting": "uniform", "method.eta": 1.0}
    made = trainer(tmp_path, **LEARNED, **{"train.order": "parallel"}, **sgd, **alike)
    shared = made.method.shared_parameters
    before = shared[0].detach().clone()
    shares = {"block-1": 1 / 2, "block-2": 1 / 2, "readout": 1.0}
    parts: list[Tensor] = []
    for index, unit in enumerate(made.units):
        chosen = made.indices(Update(0, index, 0, 0))
        draws = generator(0, "step", 0, unit.name)
        x = channels_last(NOISE_TASK.normalization.apply(NOISE.x[chosen]))
        loss = shares[unit.name] * unit.loss(x, NOISE.y[chosen], draws).total
        parts += torch.autograd.grad(loss, shared)
    for index in range(3):
        assert made.step()[0] == Update(0, index, 0, 0)
        moved = not torch.equal(shared[0], before)
        assert moved == (index == 2)
    found = before - shared[0].detach()
    torch.testing.assert_close(found, parts[0] + parts[1] + parts[2], rtol=0, atol=1e-6)
    assert min(part.abs().max() for part in parts) > 0.01


def test_the_losses_told_are_means_over_an_epoch_and_over_validation(tmp_path, monkeypatch):
    """Losses 1, 2, …, 8 in eight updates, and labels of which a third of 1500 is 1.

    Validation is read in chunks of 1000 and 500: the mean of their means would be 1/2.
    """
    config, events = replace(RunConfig(), SMALL), []
    method = build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))
    (unit,) = [u for u in method.units if u.name == "block-1"]
    validation = Examples(NOISE.x[:1].expand(1500, -1, -1, -1), (torch.arange(1500) >= 1000).long())
    seen: list[bool] = []

    def loss(x: Tensor, y: Tensor, generator: torch.Generator) -> LossTerms:
        seen.append(unit.module.training)
        told = float(sum(seen)) if unit.module.training else y.double().mean().item()
        return LossTerms({"a": told + 0 * unit.parameters[0].sum()})

    monkeypatch.setattr(unit, "loss", loss)
    Trainer(
        config, method, [unit], NOISE, validation, NOISE_TASK.normalization,
        bf16=False, folder=tmp_path / "c", emit=events.append,
    ).run()  # fmt: skip
    assert seen == ([True] * 4 + [False] * 2) * 2
    epochs = [e for e in events if isinstance(e, Epoch)]
    assert [e.loss for e in epochs] == [2.5, 6.5]
    assert [e.terms for e in epochs] == [{"a": 4.0}, {"a": 8.0}]
    assert [e.validation_loss for e in epochs] == pytest.approx([1 / 3] * 2)


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [
        ("adamw", torch.optim.AdamW, {}),
        ("adam", torch.optim.Adam, {}),
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.5}),
        ("rmsprop", torch.optim.RMSprop, {}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.5}),
    ],
)
def test_an_optimizer_is_torch_s_of_that_name(name, kind, own):
    """Adam's decay joins the gradient, AdamW's the weight: torch's classes to the last bit."""
    settings = {"train.optimizer": name, "train.lr": 0.1, "train.weight_decay": 0.2}
    settings |= {f"train.{option}": value for option, value in own.items()}
    mine, theirs = (torch.linspace(-1, 2, 6).requires_grad_() for _ in range(2))
    made = Optimizer(replace(RunConfig(), settings).train, [{"params": [mine]}])
    if name == "rmsprop":
        own |= {"alpha": 0.95, "eps": 1e-3**0.5, "centered": True}
    else:
        own |= {"fused": True}
    plain = kind([theirs], lr=0.1, weight_decay=0.2, **own)
    for _ in range(3):
        for p, optimizer in ((mine, made), (theirs, plain)):
            optimizer.zero_grad()
            (p**3).sum().backward()
            optimizer.step()
    assert torch.equal(mine, theirs)
    kept, state = optimizer_state(made).get("0", {}), plain.state[theirs]
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[key], state[key]) for key in kept)


def test_a_step_moves_one_unit_only(tmp_path):
    """Locality of an update: weights and batch-norm statistics of other units keep every bit."""
    made = trainer(tmp_path, **LEARNED, **{"train.order": "parallel"})
    for index, unit in enumerate(made.units):
        before = [{k: v.clone() for k, v in u.module.state_dict().items()} for u in made.units]
        assert made.step()[0] == Update(0, index, 0, 0)
        for other, old in zip(made.units, before, strict=True):
            new = other.module.state_dict()
            assert (other is not unit) == all(torch.equal(old[k], new[k]) for k in old)


# -- stopping and going on -----------------------------------------------------------------------


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("embedding", [FIXED, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_stops_change_nothing(tmp_path, monkeypatch, order, embedding, optimizer):
    """Stopped at many updates, in and between mini-batches: same weights and optimizer state."""
    monkeypatch.setattr(trainer_module, "time", Clock())
    changes = {**embedding, "train.order": order, "train.optimizer": optimizer}
    whole = trained(tmp_path / "whole", **changes)
    stops = [1, 2, 5, 6, 12, 17, 23]
    positions = []

    def stop(event):
        if isinstance(event, Progress) and stops and event.position >= stops[0]:
            stops.pop(0)
            raise Killed

    for _ in range(10):
        made = trainer(tmp_path / "parts", stop, **changes)
        made.resume()
        positions.append(made.position)
        try:
            made.run()
        except Killed:
            continue
        break
    assert not stops
    assert positions == sorted(positions)
    assert positions[-1] >= 12
    assert_same(whole, weights_of(tmp_path / "parts"))
    place = tmp_path / "parts" / "units" / "all"
    named = {
        part.file for name in (LAST, PREVIOUS) for part in read_commit(place / name).files.values()
    }
    assert {p.name for p in place.iterdir()} == named | {LAST, PREVIOUS}


@pytest.mark.parametrize("embedding", [FIXED, LEARNED], ids=["fixed", "learned"])
def test_ctrl_c_inside_an_update_changes_nothing(tmp_path, embedding):
    """A signal can arrive after the weights moved and before the update is counted."""
    whole = trained(tmp_path / "whole", **embedding)
    made = trainer(tmp_path / "parts", **embedding)
    real, calls = made._next_position, []

    def next_position() -> int:
        calls.append(made.position)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real()

    made._next_position = next_position
    with pytest.raises(KeyboardInterrupt):
        made.run()
    again = trainer(tmp_path / "parts", **embedding)
    again.resume()
    again.run()
    assert_same(whole, weights_of(tmp_path / "parts"))


@pytest.mark.parametrize("broken", ["loss", "gradient", "last gradient"])
def test_what_is_not_finite_is_named_and_never_saved(tmp_path, monkeypatch, broken):
    """TrainingError names unit, update and lr; the checkpoint that stays is finite."""
    made = trainer(tmp_path, quiet, "block-2", **{"train.checkpoint_every": 0.0})
    unit, calls = made.units[0], []
    real = unit.loss

    def loss(x, y, g):
        terms = real(x, y, g)
        calls.append(1)
        if broken == "loss" and len(calls) == 3:
            return LossTerms({"denoising": terms.total * torch.nan})
        late = broken[0:4] == "last" and len(calls) >= 8
        if late or (broken == "gradient" and len(calls) == 3):
            (p, *_) = unit.parameters  # finite value, infinite slope
            return LossTerms({"denoising": terms.total + (p * 0).sum().abs().sqrt() / 1})
        return terms

    monkeypatch.setattr(unit, "loss", loss)
    with pytest.raises(TrainingError, match=r"block-2.*not finite.*update \d+ of 8.*lr 0\.001"):
        made.run()
    assert 0 < commit_of(tmp_path, "block-2").position < 8
    assert all(t.isfinite().all() for t in weights(tmp_path).values())


def test_a_huge_learning_rate_is_a_training_error(tmp_path):
    huge: dict[str, Any] = {"train.lr": 1e30}
    made = trainer(tmp_path, **huge)
    with pytest.raises(TrainingError, match=r"block-1.*update \d+ of \d+.*lr 1e\+30"):
        made.run()


def test_a_full_disk_stops_training_with_one_line(tmp_path, monkeypatch):
    """The error names the file; the checkpoint before it stays whole, and training goes on."""
    whole = trained(tmp_path / "whole")

    def stop(event):
        raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path / "r", stop).run()
    files = files_of(tmp_path / "r", "all")
    before = {path: path.read_bytes() for path in files.values()}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("noprop.files.os.replace", full)
        made = trainer(tmp_path / "r")
        made.resume()
        with pytest.raises(RunError, match=r"\.safetensors: cannot be written: No space"):
            made.run()
    assert {path: path.read_bytes() for path in files.values()} == before
    made = trainer(tmp_path / "r")
    made.resume()
    made.run()
    assert_same(whole, weights_of(tmp_path / "r"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.encoder": "mlp"}, "another architecture"),
        ({"train.epochs": 3}, "belongs to a training of 32 updates, this one has 48"),
        ({"train.batch_size": 12}, "updates"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changes, words):
    """In one line that names the file; nothing is trained."""
    trained(tmp_path)
    made = trainer(tmp_path, **changes)
    with pytest.raises(RunError, match=words) as caught:
        made.resume()
    assert str(made.folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert made.position == 0


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"position": 3, "total": 2}'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content):
    made = trainer(tmp_path)
    made.folder.mkdir(parents=True)
    (made.folder / LAST).write_text(content)
    with pytest.raises(RunError, match=r"commit\.json: is damaged"):
        made.resume()


def test_the_seconds_of_training_are_those_of_every_process(tmp_path, monkeypatch):
    """A clock that ticks a second a look: what was spent before a stop is not forgotten."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: float(next(ticks)))

    def stop(event: Event) -> None:
        if isinstance(event, Epoch) and event.unit == "block-2" and event.epoch == 2:
            raise Killed

    first = trainer(tmp_path, stop)
    with pytest.raises(Killed):
        first.run()
    spent = commit_of(tmp_path, "all").seconds
    events: list[Event] = []
    second = trainer(tmp_path, events.append)
    second.resume()
    second.run()
    assert spent > 10
    assert isinstance(events[-1], Trained)
    assert events[-1].seconds > spent
