"""What studies share: a measurement has one line, and the test part is never scored."""

import json
import re
import sys

import pytest
import torch

import ablation
import compiling
import embedding_gradient
import evidence
import methods
import precision
import recipes
import silent_choices
import study
from known_blocks import Known
from noprop.config import replace
from noprop.embeddings import Embedding, one_hot_embeddings
from noprop.evaluate import evaluate
from noprop.methods.dt import DiscreteNoProp
from noprop.readouts import SoftmaxReadout
from noprop.recipes import RECIPES
from noprop.schedules import cosine_gamma
from noprop.task import load_data
from study import MODES, RESULTS, Study, markdown, mean_and_error, score
from tools import rng


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """A function that starts a study with options, as a command does."""

    def begin(*options, **about):
        arguments = ["/somewhere/toy.py", "--out", str(tmp_path / "new" / "toy.jsonl"), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        made = Study("A toy.", "toy.jsonl", **about)
        made.parse()
        return made

    return begin


def test_what_has_a_line_is_not_measured_again(begin):
    """Even by another process; more lines of one key count as one measurement."""
    calls = []

    def measure(key):
        calls.append(key["seed"])
        yield {"found": 10 * key["seed"], "nested": {"a": [1.5]}}
        yield {"found": -1, "kind": "other reading"}

    keys = [{"kind": "ours", "common": {"epochs": 1}, "seed": seed} for seed in range(3)]
    begin().measure(keys[:2], measure)
    begin().measure(keys, measure)
    assert calls == [0, 1, 2]
    again = begin("--table")
    again.measure([{"seed": 9}], measure)
    assert calls == [0, 1, 2]
    assert len(again.lines()) == 6
    (line,) = again.lines(**keys[2])
    assert line["found"] == 20
    assert again.lines(common={"epochs": 2}) == []


def test_the_study_of_evidence_scores_block_1_with_the_evidence_of_every_level():
    """Blocks that are Bayes' rule: block 1 with the exact term is as good as any, level by level.

    With the evidence of another level it would be far worse; with latents of its own it would
    differ by chance.
    """
    weight, n = one_hot_embeddings(10), 400
    gamma = cosine_gamma(4)
    log_p = torch.randn(n, 10, generator=rng(1)).log_softmax(1)
    y = log_p.exp().multinomial(1, generator=rng(2))[:, 0]
    embedding, readout = Embedding(weight, learned=False), SoftmaxReadout(weight)
    method = DiscreteNoProp([Known() for _ in range(4)], embedding, readout, gamma, exact=True)
    found = evidence.levels_of(method, [log_p] * 4, y)
    assert [round(f["alpha_bar"], 3) for f in found] == [0.0, 0.144, 0.494, 0.847]
    for level in found:
        assert level["own"] == pytest.approx(level["first"], abs=1e-6)
        assert level["difference_se"] < 1e-6
    errors = [level["own"] for level in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[3]


def test_a_line_says_where_it_comes_from(begin):
    begin("--only", "b c", variants=["a", "b c"]).append({"found": 1})
    (line,) = begin().lines()
    assert {"processor", "cores", "torch", "python", "commit"} <= set(line["machine"])
    assert re.fullmatch(r"python studies/toy\.py --out .*toy\.jsonl --only 'b c'", line["made_by"])


def test_chosen_variants_exist(begin, capsys):
    about = {"variants": ["a", "b", "a"]}
    assert begin(**about).options.only == ["a", "b"]
    assert begin("--only", "b", **about).options.only == ["b"]
    with pytest.raises(SystemExit):
        begin("--only", "b", "x", **about)
    assert "no such variant: x" in capsys.readouterr().err


def test_tables_and_means():
    assert mean_and_error([1.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_error([-0.001, -0.003], sign="+") == "+0.00 ± 0.00"
    assert mean_and_error([5.0], 1) == "5.0"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_run_is_scored_on_the_validation_part(monkeypatch):
    """The run sees no test part; scores are those of ``evaluate`` on the validation part."""
    fields = {"train.epochs": 1, "method.num_blocks": 1, "train.workers": 1, "evaluation.runs": 1}
    config = replace(RECIPES["digits-dt"], fields)
    given = []

    def train(config, *, folder, data):
        given.append(data)
        return original(config, folder=folder, data=data)

    original = study.noprop.train
    monkeypatch.setattr("study.noprop.train", train)
    scored = study.train(config)
    data = load_data(config)
    assert len(scored.validation) == len(data.validation) != len(data.test)
    assert given[0].test is given[0].validation
    assert scored.results["modes"] == evaluate(scored.model, data.validation)["modes"]
    assert scored.seconds > 0


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("ablation", ablation.table),
        ("compiling", compiling.table),
        ("methods", methods.table),
        ("precision", precision.table),
        (
            "silent-choices",
            lambda lines: silent_choices.table(lines, silent_choices.VARIANTS["dt"]),
        ),
    ],
)
def test_the_published_results_are_readable(name, table):
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(table(lines).splitlines()) > 4


@pytest.mark.parametrize("image", [1e-4, 1e-3, 0.02])
@pytest.mark.parametrize("epoch", [0.0, 2.5])
def test_methods_are_compared_at_the_time_that_is_given(image, epoch):
    """In few epochs, each of as many images as there are at most, with what each epoch costs."""
    cost, images = {"seconds_per_image": image, "seconds_per_epoch": epoch}, 54_000
    _, epochs, _, size = methods.extent(120, cost, images)
    assert 0 < int(size) <= images
    assert int(epochs) * (epoch + image * int(size)) == pytest.approx(120, rel=1e-3)
    fewer = int(epochs) - 1
    assert fewer * (epoch + image * images) < 120


def test_the_parts_of_every_variant_are_known():
    for method, variants in ablation.VARIANTS.items():
        for variant in variants:
            replace(RECIPES[f"mnist-{method}"], ablation.fields_of(variant))


@pytest.mark.parametrize(
    ("page", "name", "table", "key"),
    [
        ("evidence", "recipes", recipes.table, ("dataset", "T", "epochs")),
        ("evidence", "evidence", evidence.tables, ("dataset", "method", "T", "epochs")),
        ("evidence", "embedding-gradient", embedding_gradient.table, ()),
        ("findings", "methods", methods.table, ("dataset", "minutes")),
    ],
)
def test_a_page_has_the_tables_of_its_results(page, name, table, key):
    """Whole, as the study prints them; ``key`` tells the tables of a file apart."""
    found = (RESULTS / f"{name}.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in found.splitlines()]
    text = (RESULTS.parent / "docs" / f"{page}.md").read_text("utf-8")
    for group in {tuple(line[k] for k in key) for line in lines}:
        mine = [line for line in lines if tuple(line[k] for k in key) == group]
        for rows in table(mine).split("\n\n"):
            assert f"\n\n{rows}\n\n" in text, (group, rows)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("`mnist-fast`", "mnist-fast"),
        ("`cifar10-fast --encoder conv --epochs 20`", "cifar10-fast-fig5"),
        ("the same with `--train-levels all`", "cifar10-fast-fig5-all-levels"),
        ("`cifar10-fast --epochs 20`", "cifar10-fast-20"),
        ("`cifar10-fast`", "cifar10-fast"),
        ("`cifar10-fast --train-levels all`", "cifar10-fast-all-levels"),
        ("`cifar100-fast --encoder conv --epochs 20`", "cifar100-fast-fig5"),
        ("`cifar100-fast --epochs 20`", "cifar100-fast-20"),
    ],
)
def test_a_row_of_the_test_split_has_the_scores_of_its_file(row, name):
    evaluation = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["evaluation"]
    assert evaluation["part"] == "test"
    single, samples, path, mean, _ = (evaluation["modes"][mode] for mode in MODES)
    digits = 4 if path["log_loss"] < 0.1 else 3
    cells = [*map(score, (single, samples, path)), f"{path['log_loss']:.{digits}f}", score(mean)]
    page = (RESULTS.parent / "docs" / "evidence.md").read_text("utf-8").replace("**", "")
    assert f"\n| {' | '.join([row, *cells])} | " in page


def test_the_table_of_mean_and_label_steps_has_the_scores_of_its_file():
    kinds = json.loads((RESULTS / "cifar10-fast-steps.json").read_text("utf-8"))["evaluation"]
    page = (RESULTS.parent / "docs" / "evidence.md").read_text("utf-8")
    for mode, row in (
        ("single", "one chain"),
        ("samples", "5 chains"),
        ("path-fitted", "path average, the default"),
    ):
        cells = []
        for kind in ("mean", "label"):
            scored = kinds[kind]["modes"][mode]
            cells += [score(scored), score(scored, "log_loss", 3)]
        assert f"\n| {' | '.join([row, *cells])} |\n" in page
