"""Models on the Hugging Face Hub: a card for a model, and the transfer of its files.

A repository holds what :func:`noprop.load` reads, in safetensors, JSON and TOML, with the card as
``README.md``. Nothing in it is executed, and a download takes these files alone.

:class:`noprop.Model` has the methods of ``huggingface_hub.PyTorchModelHubMixin``, and is no
subclass: a base class from an extra would make the extra necessary, and the mixin builds a module
from the arguments of its constructor, where a model is built from a checked configuration.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from noprop.data import GIVEN, SOURCES
from noprop.data.hub_datasets import PREFIX, absolute_place
from noprop.errors import RunError, import_extra
from noprop.files import write_whole
from noprop.terminal import printable

if TYPE_CHECKING:
    from noprop.model import Model

__all__ = ["FILES", "download", "model_card", "published_name", "upload"]

FILES = ("README.md", "config.toml", "evaluation.json", "model.json", "model.safetensors")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Catalogue names of published data sets, and those of the same data on the Hub.
ON_HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}


def _hub() -> ModuleType:
    """Import huggingface_hub.

    Raises:
        RunError: If it is not installed.
    """
    return import_extra("huggingface_hub", "hub", "the Hub needs", RunError)


@contextmanager
def _one_line_errors(repository: str) -> Iterator[None]:
    """Report an error of the Hub or the network in this block as one line."""
    try:
        yield
    except (OSError, ValueError) as error:  # HTTP and file errors; names that are no repository
        words = " ".join(str(error).split())[:300]
        raise RunError(f"{repository}: {words or type(error).__name__}") from None


def download(name: str, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Download the files of a model, and return the folder that has them.

    Files that were downloaded before are read from the disk, also without a network.

    Args:
        name: ``OWNER/NAME`` of a repository.
        revision: Branch, tag or commit; the newest unless given.
        token: Token of a private repository; that of ``hf auth login`` unless given.

    Raises:
        RunError: If the repository does not exist, or cannot be read.
    """
    if not REPOSITORY.fullmatch(name) or ".." in name:
        raise RunError(f"{name}: is neither a folder nor a repository OWNER/NAME of the Hub")
    hub = _hub()
    with _one_line_errors(name):
        api = hub.HfApi(library_name="noprop")
        found = api.snapshot_download(
            name, revision=revision, token=token, allow_patterns=list(FILES)
        )
        # The files in the cache of the Hub are links, which load refuses. A folder for each commit
        # holds copies, and no file of another commit.
        commit = Path(str(found))
        folder = Path(hub.constants.HF_HOME) / "noprop" / f"{name}@{commit.name}".replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if (commit / file).is_file() and not (folder / file).exists():
                write_whole(folder / file, (commit / file).read_bytes())
    return folder


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str,
) -> str:
    """Upload the files of a model, and return the address of the repository.

    Args:
        folder: Folder with the files.
        repository: ``OWNER/NAME``, or ``NAME`` for the owner of the token. It is made if it does
            not exist.
        private: Whether a new repository is private; the default of the owner unless given.
        token: Token that may write; that of ``hf auth login`` unless given.
        message: Message of the commit.

    Raises:
        RunError: If the repository cannot be written.
    """
    api = _hub().HfApi(library_name="noprop")
    with _one_line_errors(repository):
        place = api.create_repo(repository, private=private, token=token, exist_ok=True)
        api.upload_folder(
            repo_id=place.repo_id,
            folder_path=folder,
            token=token,
            commit_message=message,
            allow_patterns=list(FILES),
            # Of a model that was there before, such as its results where this one has none.
            delete_patterns=[file for file in FILES if not (folder / file).exists()],
        )
    return str(place)


# -- the card --------------------------------------------------------------------------------------

CARD = """---
{metadata}
---

# {title}

{what}

{accuracy}

## Use

```
pip install 'noprop[hub]'
```

```python
import noprop

model = noprop.Model.from_pretrained("{repository}")
probabilities = model.predict(x)  # {inputs}; returns (N, {classes})
labels = model.predict_labels(x)
```

Nothing in the files is executed: the weights are safetensors, everything else is JSON and TOML.

## Training

```
noprop train --config config.toml
```

| field | value |
|---|---|
{fields}

NoProp: Li, Teh and Pascanu, [arXiv:2503.24322](https://arxiv.org/abs/2503.24322).
"""
FIELDS = (
    *("data.dataset", "method.name", "train.epochs", "train.batch_size", "train.optimizer"),
    *("train.lr", "train.weight_decay", "train.seed"),
)


def model_card(model: "Model", repository: str, license: str | None = None) -> str:
    """Return the card of a model, in Markdown with metadata in YAML.

    Args:
        model: The model.
        repository: Name of the repository that the example of use loads.
        license: License of the weights in the notation of the Hub, such as ``apache-2.0``.
    """
    c, task, results = model.config, model.task, model.results
    frozen = c.data.features
    kind = "image" if len(task.shape) == 3 or frozen else "tabular"
    inputs = f"{task.dtype}, shape (N, {', '.join(map(str, task.shape))})"
    metadata = {
        "library_name": "noprop",
        "pipeline_tag": f"{kind}-classification",
        "tags": ["noprop", f"noprop-{c.method.name}", "block-local-training"],
    }
    if license:
        metadata["license"] = license
    if on_hub := ON_HUB.get(c.data.dataset) or _name_on_hub(c.data.dataset):
        metadata["datasets"] = [on_hub]
    if results:
        metadata["model-index"] = [_measured(c.recipe, c.data.dataset, kind, results)]
    custom = " It was trained with an encoder of its own: pass the function that makes it as "
    own = f"{custom}`encoder`." if c.method.has_own_code else ""
    values = {name: _field(c, name) for name in FIELDS}
    return CARD.format(
        # JSON is YAML, and it quotes whatever a name has in it.
        metadata="\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),
        title=_plain(c.recipe),
        what=f"A classifier of {_plain(c.data.dataset)} with {task.num_classes} classes, trained "
        f"by the method `{c.method.name}` of noprop without full back-propagation.{own}",
        accuracy=_accuracy(results),
        repository=_plain(repository),
        inputs=f"images, uint8, shape (N, C, H, W), read by {frozen}" if frozen else inputs,
        classes=task.num_classes,
        fields="\n".join(f"| `{name}` | {_plain(str(value))} |" for name, value in values.items()),
    )


def published_name(dataset: str) -> str:
    """Return the name of a data set without the folders of a path, which are the user's own."""
    known = dataset in (GIVEN, "digits", *SOURCES)
    on_hub = dataset.startswith(PREFIX) and absolute_place(dataset) == dataset
    if known or (on_hub and not dataset.startswith(f"{PREFIX}/")):
        return dataset
    return Path(dataset).name or "data"


def _name_on_hub(dataset: str) -> str:
    """Return the name on the Hub of a data set that was read from there, or nothing."""
    name = dataset.removeprefix(PREFIX)
    return name if name != dataset and REPOSITORY.fullmatch(name) else ""


def _field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _plain(text: str) -> str:
    """Return a name as Markdown and tables show it, without markup or line breaks."""
    return re.sub(r"[`|<>\[\]*]", "_", printable(text))


def _accuracy(results: Mapping[str, Any] | None) -> str:
    if not results:
        return "The model was not evaluated."
    best = results["modes"][results["default"]]
    error, low_high = best.get("accuracy_se"), best.get("accuracy_interval")
    text = f"Accuracy of the default prediction: {best['accuracy']:.2f}"
    text += f" ± {error:.2f} %" if isinstance(error, float) else " %"
    if isinstance(low_high, list) and len(low_high) == 2:
        text += f" (95 % interval over examples {low_high[0]:.2f} to {low_high[1]:.2f})"
    if isinstance(best.get("log_loss"), float):
        text += f", log-loss {best['log_loss']:.4f} nats"
    part, number = results.get("part", "test"), results.get("examples")
    return f"{text}, on {f'{number:,} ' if isinstance(number, int) else ''}{part} examples."


def _measured(recipe: str, dataset: str, kind: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a model-index, which the Hub shows next to the model."""
    best = results["modes"][results["default"]]
    metrics = [{"type": "accuracy", "value": round(best["accuracy"] / 100, 6)}]
    if isinstance(best.get("log_loss"), float):
        metrics.append({"type": "log_loss", "value": round(best["log_loss"], 6)})
    result = {
        "task": {"type": f"{kind}-classification"},
        "dataset": {
            "name": dataset,
            "type": ON_HUB.get(dataset, dataset),
            "split": results.get("part", "test"),
        },
        "metrics": metrics,
    }
    return {"name": recipe, "results": [result]}
