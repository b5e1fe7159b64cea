"""The code of an encoder of one's own: named, compared, and never imported by a run itself."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import noprop
from noprop.cli import main
from noprop.encoder_file import ENCODER, check_encoder, note_encoder
from noprop.errors import RunError

CODE = """from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[str]:
    """A module of the current folder, whose name no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = "encoder_of_a_test"
    (tmp_path / f"{name}.py").write_text(CODE)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.filterwarnings("default")
def test_a_changed_encoder_is_a_warning_and_a_missing_one_is_named(module, tmp_path, capsys):
    """Trained, loaded without it, with it, and after its file was changed."""
    small = ["--train-size", "60", "--epochs", "1", "--num-blocks", "1", "--workers", "1"]
    argv = ["train", "--encoder", f"{module}:make", *small, "--run", "run", "--quiet"]
    assert main([*argv, "--evaluation", "off"]) == 0
    noted = json.loads((tmp_path / "run" / ENCODER).read_text())
    assert noted["function"] == f"{module}:make"
    sys.modules.pop(module)
    longer = ["train", "--resume", "run", "--epochs", "2"]
    for command in (["evaluate", "run"], ["describe", "run"], ["train", "--resume", "run"], longer):
        capsys.readouterr()
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith("noprop: error: run: was trained with an encoder of its own")
        assert f"({module}:make, SHA-256 of its file {noted['sha256'][:12]}…)" in said
        assert module not in sys.modules
    again = ["train", "--resume", "run", "--encoder", f"{module}:make", "--quiet"]
    assert main(again) == 0
    assert "warning" not in capsys.readouterr().err
    sys.modules.pop(module)
    (tmp_path / f"{module}.py").write_text(CODE + "# another line\n")
    assert main(again) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"noprop: warning: run: was made with {module}:make")
    assert said.count("\n") == 1
    assert json.loads((tmp_path / "run" / ENCODER).read_text()) == noted  # so it warns again


def test_a_stranger_s_run_imports_nothing(module, tmp_path):
    """Whatever its files name: a module of the current folder would leave a mark when imported."""
    (tmp_path / f"{module}.py").write_text("open('mark', 'w').close()\n" + CODE)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text('[method]\nname = "dt"\nencoder = "custom"\n')
    (folder / ENCODER).write_text(json.dumps({"function": f"{module}:make\x1b[2J", "sha256": 3}))
    for call in (noprop.load, noprop.resume, noprop.Run.open):
        with pytest.raises(RunError, match=f"encoder of its own \\({module}:make") as raised:
            call(folder)
        assert "\x1b" not in str(raised.value)
    assert not (tmp_path / "mark").exists()
    assert module not in sys.modules


def test_functions_without_a_file_are_not_compared(tmp_path):
    made = {}
    exec("def make(): pass", made)
    note_encoder(tmp_path, made["make"])
    assert json.loads((tmp_path / ENCODER).read_text())["sha256"] == ""
    check_encoder(tmp_path, made["make"])
    check_encoder(tmp_path, main)
    with pytest.raises(RunError, match="give it as encoder, or with --encoder"):
        check_encoder(Path(tmp_path / "none"), None)
