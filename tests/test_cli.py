"""The command line as a stranger meets it; most mistakes are rows of test_mistakes.py."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mistakes import FAST, line_of_error
from noprop.cli import COMMANDS, main
from noprop.commands import describe
from noprop.commands.options import option_names
from noprop.config import fields_of
from noprop.networks import DiscreteBlock
from noprop.recipes import RECIPES
from noprop.run.processes import METHOD


@pytest.fixture
def run(trained_run):
    """A small trained run, not to be changed."""
    return trained_run("digits-dt")


@pytest.mark.parametrize(
    "take",
    [
        lambda: torch.empty(10**15),
        lambda: np.empty(10**15),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried\nto")),
    ],
    ids=["torch", "numpy", "cuda"],
)
def test_memory_that_is_not_there_is_one_line(capsys, monkeypatch, take):
    monkeypatch.setattr(describe, "run", lambda arguments: take())
    assert "not enough memory: " in line_of_error(capsys, "describe")


def test_a_mistake_of_ours_keeps_its_trace(monkeypatch):
    def broken(arguments: object) -> int:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(describe, "run", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["describe"])


ENCODERS = """
from torch import nn
number = 3
def broken(): raise ZeroDivisionError("by\\nzero")
def none(): pass
def narrow(): return nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
def fine(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
def wider(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
"""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("number", "number is int, not callable"),
        ("broken", "making the encoder failed: ZeroDivisionError: by zero"),
        ("none", "must be an nn.Module, got NoneType"),
        ("narrow", "the encoder fails on a batch of shape (2, 1, 8, 8)"),
        ("wider", "holds the weights of another architecture"),
    ],
)
def test_an_encoder_of_ones_own_that_fails_is_one_line(
    capsys, monkeypatch, tmp_path, function, words
):
    """When it is trained with, and when a run that was trained with another is given it."""
    (tmp_path / "own_encoders.py").write_text(ENCODERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_encoders:{function}"
    if function != "wider":
        assert words in line_of_error(capsys, "train", *FAST, "--encoder", name)
        assert not (tmp_path / "runs").exists()
    assert main(["train", *FAST, "--run", "r", "--encoder", "own_encoders:fine"]) == 0
    np.save("x.npy", np.zeros((2, 8, 8), np.uint8))
    assert words in line_of_error(capsys, "predict", "r", "x.npy", "--encoder", name)


def test_an_encoder_of_ones_own_is_described(capsys, monkeypatch, tmp_path):
    """With its weights: one that is narrower by a feature has fewer, and so has the next layer."""
    (tmp_path / "own_encoders.py").write_text(
        ENCODERS + "\ndef three(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_encoders", raising=False)
    sizes = []
    for function in ("fine", "three"):
        assert main(["describe", "--encoder", f"own_encoders:{function}", "--json"]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["units"][0]["parameters"])
    assert sizes[0] - sizes[1] == 65 + 256  # the layer from the features to the width 256
    assert "--encoder MODULE:FUNCTION" in line_of_error(
        capsys, "describe", "--set", "method.encoder=custom"
    )


def features(path: Path, dim: int = 5, classes: int = 3) -> Path:
    """An .npz data set of tables."""
    y = np.arange(60) % classes
    x = np.random.default_rng(0).normal(size=(60, dim)) + y[:, None]
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def test_data_that_changed_since_training_is_named(capsys, tmp_path):
    """Another shape, or other classes: evaluate and plot say which, and measure nothing."""
    file, run = features(tmp_path / "table.npz"), str(tmp_path / "r")
    assert main(["train", *FAST, "--dataset", str(file), "--run", run]) == 0
    for changes, words in (
        ({"dim": 6}, f"examples of shape (6,); {run} was trained on float32 of (5,)"),
        ({"classes": 4}, f"classes 0, 1, 2, 3; {run} was trained on 0, 1, 2"),
    ):
        features(file, **changes)
        for command in ("evaluate", "plot"):
            assert words in line_of_error(capsys, command, run)


def test_a_table_is_trained_on_and_predicted_by_the_names_of_its_columns(
    capsys, monkeypatch, tmp_path
):
    """A prediction finds its columns in another order; the run's own data must have them in it."""
    monkeypatch.chdir(tmp_path)
    b = np.random.default_rng(0).normal(size=60) + np.arange(60) % 3 * 9
    lines = [f"{i},{b[i]:.3f},{'xyz'[i % 3]}" for i in range(60)]
    Path("t.csv").write_text("\n".join(["a,b,kind", *lines]))
    assert main(["train", *FAST, "--dataset", "t.csv", "--label", "kind"]) == 0
    capsys.readouterr()
    answers = []
    text = "\n".join(["note,b,a", *(f"{i},{b[i]:.3f},{i}" for i in range(60))])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    for file in ("t.csv", "-"):
        assert main(["predict", "runs/t-dt", file, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        answers.append([line["probabilities"] for line in found])
    assert answers[0] == answers[1]
    assert list(answers[0][0]) == ["x", "y", "z"]
    Path("t.csv").write_text("\n".join(["b,a,kind", *lines]))
    words = "t.csv: has the columns b, a; runs/t-dt was trained on a, b"
    assert words in line_of_error(capsys, "evaluate", "runs/t-dt")
    about = json.loads(Path("runs/t-dt/model.json").read_text())
    for columns in (["a"], ["a", 2], "ab"):
        Path("runs/t-dt/model.json").write_text(json.dumps({**about, "columns": columns}))
        assert "model.json" in line_of_error(capsys, "predict", "runs/t-dt", "t.csv")


def test_a_run_finds_its_data_from_another_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    features(tmp_path / "table.npz")
    assert main(["train", *FAST, "--dataset", "table.npz", "--run", "r"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../r", "--json"]) == 0
    (tmp_path / "table.npz").rename("table.npz")
    said = line_of_error(capsys, "evaluate", "../r")
    assert "table.npz: no such file or folder" in said
    assert "--data-dir" in said
    for command in (["evaluate", "../r", "--json"], ["train", "--resume", "../r", "--quiet"]):
        assert main([*command, "--data-dir", "."]) == 0


@pytest.mark.parametrize(("batch", "told"), [(128, True), (4, False)])
def test_a_run_of_hardly_any_updates_is_told_of_smaller_batches(capsys, tmp_path, batch, told):
    file = features(tmp_path / "table.npz")
    short = [option for option in FAST if option != "--quiet"]
    command = ["train", *short, "--dataset", str(file), "--batch-size", str(batch)]
    assert main([*command, "--run", str(tmp_path / "r")]) == 0
    err = capsys.readouterr().err
    assert ("training examples has 1 update, 1 in all, which is little" in err) == told


def test_an_encoder_that_ships_is_a_field(capsys, tmp_path):
    """A name sets method.encoder, as for describe; what has a colon is a function of one's own."""
    run = tmp_path / "r"
    assert main(["train", *FAST, "--encoder", "mlp", "--run", str(run)]) == 0
    assert 'encoder = "mlp"' in (run / "config.toml").read_text()
    assert "method.encoder: input should be 'auto'" in line_of_error(
        capsys, "train", "--encoder", "mpl"
    )
    refused = line_of_error(capsys, "train", "--resume", str(run), "--encoder", "conv")
    fields = "only train.workers, train.epochs, evaluation.budget can change, got method.encoder"
    assert fields in refused
    assert f"a new run with --init {run}" in refused
    assert "--encoder wants MODULE:FUNCTION" in line_of_error(
        capsys, "evaluate", str(run), "--encoder", "mlp"
    )


@pytest.mark.parametrize("place", ["resolve.load_data", "local.LocalEngine.run"])
def test_ctrl_c_says_how_to_go_on_where_there_is_a_run(capsys, monkeypatch, tmp_path, place):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"noprop.run.{place}", interrupted)
    folder = tmp_path / "r"
    assert main(["train", *FAST, "--run", str(folder)]) == 130
    text = capsys.readouterr().err
    assert text.startswith("stopped")
    assert folder.exists() == (f"--resume {folder}" in text) == (place == "local.LocalEngine.run")


CTRL_C = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy._core.overrides":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from noprop.cli import main
sys.exit(main(["describe", "digits-dt"]))
"""


def test_ctrl_c_while_numpy_is_imported_is_one_line():
    """Torch imports numpy and ignores an interrupt of that, after which numpy cannot be used."""
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "noprop: stopped\n")


def test_missing_data_says_where_it_was_looked_for(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NOPROP_DATA", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    text = line_of_error(capsys, "train", "mnist-dt", "--data-dir", str(tmp_path / "here"))
    assert str(tmp_path / "here") in text
    assert "train-images-idx3-ubyte.gz" in text


def test_a_full_disk_is_one_line(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in line_of_error(capsys, "train", *FAST, "--run", str(tmp_path / "r"))


def test_a_place_without_permission_is_one_line(capsys, monkeypatch, tmp_path):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "Permission denied" in line_of_error(
        capsys, "train", *FAST, "--run", str(tmp_path / "r")
    )


def test_train_leaves_a_complete_run(run):
    wanted = {"config.toml", "environment.json", "metrics.jsonl", "model.safetensors", "model.json"}
    assert wanted <= {file.name for file in run.iterdir()}
    assert {f.name for f in (run / "units").iterdir()} == {"block-1", "block-2", "readout"}
    assert not [f for f in run.rglob(".*") if not f.name.endswith(".lock")]


def test_evaluate_repeats_what_train_found(capsys, run):
    assert main(["evaluate", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    first = json.loads((run / "evaluation.json").read_text())
    training = first.pop("training")
    assert again == first
    assert training["seconds"] > 0
    assert training["peak_memory_mb"] > 50
    assert len(again["steps"]) == 3
    assert set(again["elbo"]) == {"classification", "prior", "denoising", "total"}
    assert main(["evaluate", str(run)]) == 0
    text = capsys.readouterr().out
    assert "359 test examples" in text
    assert "calibration error" in text


def test_evaluate_reads_another_part_when_told(capsys, run, tmp_path):
    assert main(["evaluate", str(run), "--part", "train"]) == 0
    assert "200 train examples" in capsys.readouterr().out
    folder = tmp_path / "whole"
    assert main(["train", *FAST, "--run", str(folder), "--validation", "0"]) == 0
    text = line_of_error(capsys, "evaluate", str(folder), "--part", "validation")
    assert "validation part of digits is empty" in text


def test_predict_writes_table_csv_and_json(capsys, run, tmp_path):
    file = tmp_path / "two.npz"
    np.savez(file, x=np.zeros((2, 8, 8), np.uint8))
    assert main(["predict", str(run), str(file), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 2
    for answer in answers:
        assert abs(sum(answer["probabilities"].values()) - 1) < 1e-4
        best = max(answer["probabilities"], key=answer["probabilities"].get)
        assert answer["label"] == best
    assert main(["predict", str(run), str(file), "--format", "csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("file,label,")
    assert len(rows) == 3
    assert main(["predict", str(run), str(file), "--no-noise", "--average", "readout"]) == 0


def test_describe_counts_the_papers_parameters(capsys):
    assert main(["describe", "mnist-dt", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert [u["parameters"] for u in about["units"]] == [919_946] * 10 + [110]
    assert about["shared_parameters"] == 0
    assert [u["local_depth"] for u in about["units"]] == [7] * 10 + [1]
    assert about["schedule"][10]["a"] < 1
    assert main(["describe", "cifar10-dt-d20"]) == 0
    assert "1,217,994" in capsys.readouterr().out


def test_describe_shows_how_a_recipe_differs_from_the_defaults(capsys):
    """Of the method, of training and of the inputs; a value in a text is escaped as others are."""
    assert main(["describe", "digits-dt", "--evidence", "exact", "--flip", "on"]) == 0
    shown = capsys.readouterr().out
    assert "method.evidence=exact, train.epochs=10, train.flip=on\n" in shown
    assert "eta" not in shown.split("\n\n")[0]
    assert main(["describe", "digits-ct", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings.pop("train.optimizer") == "adam"
    assert set(settings) <= {"train.epochs", "method.steps"}
    assert main(["describe", "digits-ff"]) == 0
    assert "data.normalization=unit" in capsys.readouterr().out


def test_describe_of_a_long_chain_builds_one_block(capsys, monkeypatch):
    """T networks alike are described by one of them; their weights are those that training uses."""
    built = []
    real = DiscreteBlock.__init__

    def counted(self, *arguments, **settings):
        built.append(self)
        real(self, *arguments, **settings)

    monkeypatch.setattr(DiscreteBlock, "__init__", counted)
    options = ["--num-blocks", "1000", "--epsilon", "1e-9", "--weighting", "min-snr"]
    assert main(["describe", "mnist-dt", *options, "--json"]) == 0
    assert len(built) == 1
    about = json.loads(capsys.readouterr().out)
    assert [u["parameters"] for u in about["units"]] == [919_946] * 1000 + [110]
    assert [u["name"] for u in about["units"]][998:] == ["block-999", "block-1000", "readout"]
    for level in about["schedule"][1:]:
        assert level["weight"] == pytest.approx(0.1 * 0.5 * min(level["snr"], 5.0))


def test_help_shows_the_values_of_the_default_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert RECIPES["digits-dt"].train.epochs == 10
    assert "passes over the training set [10]" in text
    assert "fm: σ of the Gaussian path (Eq. 10) [0.0]" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal(command, capsys, monkeypatch):
    """The description is wrapped as the options are; an optional RECIPE is in brackets."""
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    head = lines[: lines.index("options:")]
    assert [line for line in head if len(line) > 60] == []
    if command == "grid":
        assert head[0] == "usage: noprop grid [RECIPE ...] [options]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_what_a_value_is(command, capsys):
    """Every choice is listed, those of all methods that have the field; no value is a VALUE."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert not re.search(r"(?<!=)\bVALUE\b", text)
    pairs = re.findall(r" --([a-z-]+) ([A-Z_]+)\b", text)
    # argparse repeats the name of an option whose value has no name.
    repeated = {option for option, value in pairs if option.upper() == value.replace("_", "-")}
    assert repeated <= {"time", "scale"}
    if command not in ("train", "grid", "describe"):
        return
    assert "--encoder {auto,conv,conv-bn,small,mlp}|timm:NAME|MODULE:FUNCTION" in text
    assert "--sampler {ancestral,euler,heun,dopri5}" in text  # those of CT and of FM
    assert "--validation FRACTION" in text
    assert "--train-size N" in text
    assert "--gamma-noise FLOAT|auto" in text
    assert "--evaluation FLOAT|full|off" in text
    assert "--flip {on,off}" in text
    assert '--network-reads {"x and z",x}' in text


# Seven layers from the image to the logits of a block. A chain of ten adds those from the latent to
# the logits (3 + 3, or 1 + 3 in the network of CT) for each of nine more blocks, and the readout.
DEPTH = {"ct": 7, "fm": 7, "adjoint": 7 + 9 * 4 + 1, "backprop": 7 + 9 * 6 + 1}
NETWORK = {"ct": 867_722, "fm": 867_722, "adjoint": 867_722, "backprop": 9_199_460}


@pytest.mark.parametrize("method", NETWORK)
def test_describe_knows_every_method(capsys, method):
    """One unit, which is the networks of Fig. 5 and the readout's 110 parameters (MNIST)."""
    fewer = ["--steps", "10"] if method == "adjoint" else []  # it counts activations step by step
    assert main(["describe", f"mnist-{method}", *fewer, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["method"] == method
    (unit,) = about["units"]
    more = {"ct": unit["parameters"] - 867_722 - 110, "backprop": 10}.get(method, 0)
    parameters = NETWORK[method] + 110 + more
    assert unit == {"name": "network", "parameters": parameters, "local_depth": DEPTH[method]}
    assert (more > 0) == (method in ("ct", "backprop"))  # the schedule's, α_t of ten blocks
    assert more < 5_000
    assert about["shared_parameters"] == 0
    assert about["unit_memory_mb"] > 16 * unit["parameters"] / 1e6


@pytest.mark.parametrize("method", NETWORK)
def test_describe_says_what_a_method_has(capsys, method):
    """Of the four only CT has a schedule before it is trained; W_Embed is shared when learned."""
    assert main(["describe", f"digits-{method}", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["recipe"] == f"digits-{method}"
    assert len(about["schedule"]) == (11 if method == "ct" else 0)
    if method == "ct":
        t, level = ([row[name] for row in about["schedule"]] for name in ("t", "alpha_bar"))
        assert t == pytest.approx([i / 10 for i in range(11)])
        assert level == sorted(level)
        # σ(-6 - log 2) for one-hot embeddings, which are √2 apart, and σ(6)
        assert (level[0], level[-1]) == pytest.approx((0.00124, 0.99753), abs=1e-5)
        for row in about["schedule"]:
            assert row["weight"] == pytest.approx(0.5 * row["snr_slope"], rel=1e-6)  # η = 1
    assert main(["describe", f"digits-{method}"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"digits-{method}: {method} on digits, inputs [1, 8, 8], 10 classes")
    assert f"{about['units'][0]['parameters']:,}" in text
    assert "shared: nothing\n" in text
    assert ("SNR′" in text) == (method == "ct")
    learned = ["--embedding", "orthogonal", "--learned", "on"]
    assert main(["describe", f"digits-{method}", *learned]) == 0
    assert "shared (W_Embed): 200" in capsys.readouterr().out


def test_data_lists_every_set(capsys):
    assert main(["data", "--json"]) == 0
    listed = {s["name"] for s in json.loads(capsys.readouterr().out)}
    assert {r.data.dataset for r in RECIPES.values()} <= listed


def test_every_field_has_an_option_of_its_own():
    names = [n for n, *_ in fields_of() if n not in ("recipe", "train.extended_from", "train.init")]
    options = option_names()
    assert sorted(options) == sorted(names)
    assert options["method.name"] == "--method"
    assert len(set(options.values())) == len(names)


def test_help_does_not_import_torch():
    """Importing torch alone would take a second or more."""
    code = (
        "import sys; from noprop.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.skipif(METHOD != "forkserver", reason="processes are spawned here")
def test_the_server_of_workers_starts_before_torch_is_imported():
    """Both import torch at the same time, each on a core of its own."""
    code = (
        "import sys; import noprop.run.processes as processes; from noprop.cli import main\n"
        "def start(): print('torch' in sys.modules); sys.exit()\n"
        "processes.start_server = start; main(['train', '--workers', '2'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False"]


def test_a_command_exits_without_a_search_for_garbage():
    """Which takes four tenths of a second where torch is imported."""
    code = (
        "import gc; gc.freeze = lambda: print('frozen'); from noprop.cli import main\n"
        "main(['recipes', 'mnist-dt-best'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "frozen"


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (["digits-dt"], "noprop train digits-ff has its own"),
        (["digits-dt", "--optimizer", "sgd"], None),
        (["digits-ff"], None),
    ],
)
def test_a_method_with_training_of_its_own_names_its_recipe(more, hint, capsys, tmp_path):
    """``--method ff`` alone keeps the optimizer of the recipe that it changes."""
    method = ["--method", "ff"] if more != ["digits-ff"] else []
    small = ["--train-size", "200", "--epochs", "1", "--width", "10", "--evaluation", "off"]
    run = ["--workers", "1", "--run", str(tmp_path / "r")]
    assert main(["train", *more, *method, *small, *run]) == 0
    shown = capsys.readouterr().err
    assert (hint in shown) if hint else ("has its own" not in shown)
