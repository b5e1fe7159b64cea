"""Models in a folder with a card, and on a Hub that is a folder of this machine."""

import dataclasses
import hashlib
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
import yaml

import noprop
from noprop.config import replace
from noprop.errors import NoPropError, RunError
from noprop.hub import FILES
from noprop.model import Model

IMAGES = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)


@pytest.fixture
def model(trained_run) -> Model:
    return noprop.load(trained_run("digits-dt"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A Hub whose repositories are folders; its calls are those of the installed HfApi."""
    package = pytest.importorskip(
        "huggingface_hub", reason="huggingface_hub is not installed: pip install 'noprop[hub]'"
    )
    root = tmp_path / "hub"
    api = create_autospec(package.HfApi, instance=True)

    def create(repository, **options):
        (root / repository).mkdir(parents=True, exist_ok=options["exist_ok"])
        return SimpleNamespace(repo_id=repository)

    def upload(*, repo_id, folder_path, allow_patterns, delete_patterns, **_):
        for name in delete_patterns:
            (root / repo_id / name).unlink(missing_ok=True)
        for name in allow_patterns:
            if (folder_path / name).exists():
                shutil.copy(folder_path / name, root / repo_id)

    def snapshot(repo_id, *, allow_patterns, revision=None, **_):
        """Return a folder of links for each commit, as the cache of the Hub has."""
        place = root / repo_id if revision is None else root / f"{repo_id}@{revision}"
        if not place.is_dir():
            raise OSError(f"404 Client Error.\nRepository Not Found: {repo_id}")
        digest = hashlib.sha1(
            b"".join(file.name.encode() + file.read_bytes() for file in sorted(place.iterdir()))
        )
        commit = tmp_path / "cache" / digest.hexdigest()
        commit.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (place / name).exists() and not (commit / name).exists():
                blob = commit.parent / f"{name}-{digest.hexdigest()}"
                shutil.copy(place / name, blob)
                (commit / name).symlink_to(blob)
        return str(commit)

    api.create_repo.side_effect = create
    api.upload_folder.side_effect = upload
    api.snapshot_download.side_effect = snapshot
    monkeypatch.setattr(package, "HfApi", lambda **_: api)
    monkeypatch.setattr(package.constants, "HF_HOME", str(tmp_path / "home"))
    return root


def hub_api() -> Any:
    """The client whose calls the fixture answers."""
    import huggingface_hub

    return huggingface_hub.HfApi()


def on_data(model: Model, name: str) -> Model:
    """The model, as if it had been trained on another data set."""
    return dataclasses.replace(model, config=replace(model.config, {"data.dataset": name}))


def metadata(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_saved_model_predicts_as_it_did(model, tmp_path):
    model.save_pretrained(tmp_path / "digits")
    again = Model.from_pretrained(tmp_path / "digits", device="cpu")
    assert torch.equal(again.predict(IMAGES), model.predict(IMAGES))
    assert again.results == model.results
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == sorted(FILES)
    model.save_pretrained(tmp_path / "digits")  # again, in place of the first


def test_the_card_has_the_recipe_the_accuracy_and_code_that_runs(model, tmp_path):
    model.save_pretrained(tmp_path / "digits", license="apache-2.0")
    about, text = metadata(tmp_path / "digits"), (tmp_path / "digits" / "README.md").read_text()
    assert about["license"] == "apache-2.0"
    assert about["library_name"] == "noprop"
    assert about["pipeline_tag"] == "image-classification"
    (entry,) = about["model-index"][0]["results"]
    measured = {metric["type"]: metric["value"] for metric in entry["metrics"]}
    assert measured["accuracy"] == pytest.approx(model.results["accuracy"] / 100, abs=1e-6)
    assert measured["log_loss"] == pytest.approx(model.results["log_loss"], abs=1e-6)
    assert f"{model.results['accuracy']:.2f}" in text
    assert "| `train.epochs` | 1 |" in text
    code = re.search("```python\n(.*?)```", text, re.DOTALL)
    assert code
    names = {"x": IMAGES}
    exec(code[1].replace('"digits"', repr(str(tmp_path / "digits"))), names)
    assert names["probabilities"].shape == (5, 10)


def test_the_card_is_valid_for_the_hub(model, tmp_path):
    package = pytest.importorskip("huggingface_hub", reason="pip install 'noprop[hub]'")
    model.save_pretrained(tmp_path / "digits")
    card = package.ModelCard.load(tmp_path / "digits" / "README.md")
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(model.results["accuracy"] / 100, abs=1e-6)


def test_a_model_goes_to_the_hub_and_back(model, hub):
    model.push_to_hub("me/digits")
    assert sorted(p.name for p in (hub / "me/digits").iterdir()) == sorted(FILES)
    assert '"me/digits"' in (hub / "me/digits/README.md").read_text()
    again = Model.from_pretrained("me/digits", device="cpu")
    assert torch.equal(again.predict(IMAGES), model.predict(IMAGES))
    assert not any(path.is_symlink() for path in again.folder.rglob("*"))


def test_only_the_files_of_a_model_are_downloaded(model, hub):
    model.push_to_hub("me/digits")
    (hub / "me/digits/modeling.py").write_text("raise SystemExit")
    again = Model.from_pretrained("me/digits", device="cpu")
    assert {p.name for p in again.folder.iterdir()} == set(FILES)


def test_a_model_without_results_takes_no_others(model, hub, tmp_path):
    """Neither in the repository, where an evaluated model was before it, nor in the downloads."""
    model.push_to_hub("me/digits")
    assert Model.from_pretrained("me/digits", device="cpu").results
    model.save(tmp_path / "plain")
    noprop.load(tmp_path / "plain").push_to_hub("me/digits")
    assert not (hub / "me/digits/evaluation.json").exists()
    assert not Model.from_pretrained("me/digits", device="cpu").results


def test_a_revision_is_the_one_that_is_asked_for(model, hub, tmp_path):
    """Also where another one was downloaded before; a token goes to every call."""
    model.push_to_hub("me/digits", token="hf_a")
    shutil.copytree(hub / "me/digits", hub / "me/digits@old")
    (hub / "me/digits@old/evaluation.json").unlink()
    assert Model.from_pretrained("me/digits", device="cpu", token="hf_b").results
    old = Model.from_pretrained("me/digits", revision="old", device="cpu", token="hf_b")
    assert not old.results
    assert Model.from_pretrained("me/digits", device="cpu").results
    api = hub_api()
    assert api.create_repo.call_args.kwargs["token"] == "hf_a"
    assert api.upload_folder.call_args.kwargs["token"] == "hf_a"
    tokens = [call.kwargs["token"] for call in api.snapshot_download.call_args_list]
    assert tokens == ["hf_b", "hf_b", None]
    model.push_to_hub("me/secret", private=True)
    assert api.create_repo.call_args.kwargs["private"] is True


@pytest.mark.parametrize("name", ["no/such", "nosuch", "../me/digits", "./nosuch", "me/.."])
def test_a_name_of_nothing_is_one_line(hub, name):
    with pytest.raises(RunError, match=re.escape(name)) as error:
        Model.from_pretrained(name)
    assert "\n" not in str(error.value)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: Model.from_pretrained("me/digits"), lambda: model.push_to_hub("me/x")):
        with pytest.raises(RunError, match=r"pip install 'noprop\[hub\]'"):
            call()


def test_a_path_of_the_data_is_not_published(model, tmp_path):
    """Neither in the card nor in any other file: folders may have names of people in them."""
    on_data(model, "/home/alice/scans").save_pretrained(tmp_path / "m")
    content = b"".join(path.read_bytes() for path in (tmp_path / "m").iterdir())
    assert b"alice" not in content
    assert b"scans" in content


def test_names_of_a_stranger_stay_text_in_the_card(model, tmp_path):
    """A recipe or data set cannot add metadata, end the header, or become markup."""
    name = 'x"\n---\nlicense: mit\n<script>alert(1)</script>[a](b)`|'
    on_data(model, name.replace("/", "")).save_pretrained(tmp_path / "m")
    header = metadata(tmp_path / "m")
    assert "license" not in header
    body = (tmp_path / "m" / "README.md").read_text().split("---\n", 2)[2]
    assert "<script>" not in body
    assert "[a](b)" not in body


HOSTILE = {
    "an encoder that names code": ("config.toml", 'encoder = "auto"', 'encoder = "os:system"'),
    "a method that names code": ("config.toml", 'name = "dt"', 'name = "os.system"'),
    "an unknown field": ("config.toml", "[method]", '[method]\nfactory = "os:system"'),
    "a pickled type": ("model.json", '"dtype": "uint8"', '"dtype": "__import__(\'os\')"'),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_runs_no_code(model, tmp_path, case):
    model.save_pretrained(tmp_path / "m")
    file, old, new = HOSTILE[case]
    text = (tmp_path / "m" / file).read_text()
    assert old in text
    (tmp_path / "m" / file).write_text(text.replace(old, new))
    with pytest.raises(NoPropError):
        Model.from_pretrained(tmp_path / "m")


def test_a_model_with_own_code_wants_it_from_the_caller(tmp_path, model):
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m/config.toml").read_text()
    text = text.replace('encoder = "auto"', 'encoder = "custom"')
    (tmp_path / "m/config.toml").write_text(text)
    with pytest.raises(RunError, match="give it as encoder"):
        Model.from_pretrained(tmp_path / "m")


def test_a_run_folder_is_not_overwritten(model):
    with pytest.raises(RunError, match="is a run folder"):
        model.save_pretrained(model.folder)


def test_a_model_is_saved_where_it_came_from(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    Model.from_pretrained(tmp_path / "m", device="cpu").save_pretrained(tmp_path / "m")
    again = Model.from_pretrained(tmp_path / "m", device="cpu")
    assert torch.equal(again.predict(IMAGES), model.predict(IMAGES))
    assert again.results == model.results


def test_a_folder_of_other_files_is_left_as_it_is(model, tmp_path):
    (tmp_path / "README.md").write_text("My project")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"has README\.md, which is of no model"):
        model.save_pretrained(tmp_path)
    with pytest.raises(RunError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file")
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "file"}
    assert (tmp_path / "README.md").read_text() == "My project"


def test_a_model_without_an_evaluation_has_a_card(model, tmp_path):
    model.save(tmp_path / "plain")
    noprop.load(tmp_path / "plain").save_pretrained(tmp_path / "m")
    assert "model-index" not in metadata(tmp_path / "m")
    assert "was not evaluated" in (tmp_path / "m/README.md").read_text()
    assert not (tmp_path / "m/evaluation.json").exists()
