"""NoProp as a classifier of scikit-learn: ``noprop.sklearn.NoPropClassifier``.

It trains NoProp-DT in this process, without a run folder, by the trainer of every run. Differs from
the paper: blocks have the exact evidence of the latent and read x alone (docs/theory.md), their
objective is the cross-entropy, and the learning rate is one cycle. A prediction is the mean chain
with the path average, in float64: a function of each row alone, whichever rows come with it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noprop.chain_settings import DTConfig
from noprop.config import RunConfig, from_mapping, replace, to_mapping
from noprop.data import Examples, stratified_split
from noprop.data.weighted import WeightedExamples, channels_first, distinct, moments
from noprop.errors import ConfigError, NoPropError
from noprop.in_memory import (
    Arrays,
    arrays_of,
    build_for_shape,
    epochs_of,
    for_prediction,
    load_arrays,
    optimizer_arrays,
    place,
    probabilities,
    restore_optimizers,
    threads,
    trainer_in_memory,
)
from noprop.machine import choose_device
from noprop.methods.base import Method
from noprop.randomness import derive_seed
from noprop.training.trainer import Trainer

try:
    from joblib import effective_n_jobs
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError:
    raise ImportError(
        "noprop.sklearn needs scikit-learn 1.6 or later: pip install 'noprop[sklearn]'"
    ) from None

__all__ = ["NoPropClassifier"]

LEAST_UPDATES = 200  # of each block, where the number of epochs is not given
LEAST_EPOCHS = 10
CHUNK = 1000  # rows predicted at a time
SETTINGS = {
    "method.evidence": "exact",
    "method.network_reads": "x",
    "method.objective": "cross-entropy",
    "train.order": "parallel",
    "train.precision": "float32",
}


class NoPropClassifier(ClassifierMixin, BaseEstimator):
    """Classifier trained block by block, without back-propagation through blocks.

    X is (N, F), or images (N, H, W), (N, H, W, C) or (N, C, H, W). Features, or the channels of
    images, are standardised. Rows get an MLP; images get convolutions.

    Args:
        num_blocks: T, blocks of the chain.
        epochs: Passes over the training set; with None as many as give each block about 200
            updates, and at least 10. An upper bound with ``early_stopping``.
        batch_size: Examples per update; with None 32, and more from 2048 examples on, at most 256.
        learning_rate: Greatest learning rate.
        weight_decay: Weight decay of AdamW.
        dropout: Probability of dropping a feature while training.
        class_weight: Weights of the classes: a dictionary, ``"balanced"``, or None for 1.
        early_stopping: Whether to hold a part of the data out, stop when its log-loss has not
            improved for ``patience`` epochs, and keep the weights of the best epoch. The learning
            rate is then constant; otherwise it is one cycle.
        validation_fraction: Fraction to hold out, stratified.
        patience: Number of epochs without improvement.
        channels: Place of the channels in images of four dimensions: ``"first"``, ``"last"`` or
            ``"auto"``, the axis with 1, 3 or 4 entries.
        overrides: Other fields of :class:`noprop.RunConfig`, such as ``{"method.eta": 1.0}``.
        device: Device of training. Predictions are computed on the CPU.
        n_jobs: Threads of training and prediction; None means 1, and -1 all cores.
        random_state: Seed of the initial weights, the noise and the order of examples.

    Attributes:
        classes_: Labels, in the order of the columns of :meth:`predict_proba`.
        n_iter_: Epochs trained.
        validation_losses_: Log-loss of the held-out part after each epoch; empty without one.
        shape_: Shape of an input, (F,) or (C, H, W).
        config_: Settings of the training, as in the ``config.toml`` of a run.
        weights_: Weights of the networks by name.
        optimizer_: State of the optimizers by name, after :meth:`partial_fit`.
        mean_: Mean of each feature or channel.
        scale_: Deviation of each feature or channel.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> x, y = load_wine(return_X_y=True)
        >>> model = NoPropClassifier(num_blocks=1, epochs=20, random_state=0).fit(x[::2], y[::2])
        >>> bool(model.score(x[1::2], y[1::2]) > 0.9)
        True
    """

    @no_type_check  # scikit-learn's contract: any value is kept here, and checked by fit
    def __init__(
        self,
        num_blocks: int = 5,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        dropout: float = 0.0,
        class_weight: Mapping[Any, float] | str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        channels: str = "auto",
        overrides: Mapping[str, Any] | None = None,
        device: str = "cpu",
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        self.num_blocks = num_blocks
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.channels = channels
        self.overrides = overrides
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state

    # -- training ----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "NoPropClassifier":
        """Train from the beginning.

        Args:
            X: Inputs.
            y: Labels of any kind.
            sample_weight: Weights of the examples in the loss, shape (N,); all 1 unless given. A
                weight of 2 has exactly the effect of an example that comes twice.

        Raises:
            ValueError: If an argument is wrong, or there is only one class.
        """
        with _value_errors(), threads(_thread_count(self.n_jobs)):
            table = self._read(X, y, sample_weight)
            if len(self.classes_) < 2:
                raise ConfigError(f"y: wanted two classes or more, got 1 class, {self.classes_[0]}")
            config = self._begin(table)
            method = build_for_shape(config, self.shape_, len(self.classes_))
            self._keep(self._train(config, method, table), method)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "NoPropClassifier":
        """Train for one more epoch, on these examples, at a constant learning rate.

        Settings and moments of the features are those of the first call, of this or of :meth:`fit`.

        Args:
            X: Inputs.
            y: Labels.
            classes: All labels that any call will have; needed in the first call alone.
            sample_weight: Weights of the examples, as for :meth:`fit`.

        Raises:
            ValueError: If an argument is wrong.
        """
        with _value_errors(), threads(_thread_count(self.n_jobs)):
            first = not hasattr(self, "weights_")
            if first and classes is None:
                raise ConfigError("classes: must be given in the first call of partial_fit")
            if self.class_weight == "balanced":
                raise ConfigError("class_weight: 'balanced' needs all data; give a dictionary")
            known = np.unique(classes) if first else self.classes_
            table = self._read(X, y, sample_weight, known)
            config = self._begin(table) if first else from_mapping(self.config_, "config_")
            method = build_for_shape(config, self.shape_, len(self.classes_))
            if not first:
                load_arrays(method, self.weights_)
            seed = derive_seed(config.train.seed, "partial fit", self.n_iter_)
            once = {"train.epochs": 1, "train.schedule": "constant", "train.seed": seed}
            trainer = self._trainer(replace(config, once), method, table)
            restore_optimizers(trainer, self.optimizer_)
            self.n_iter_ += sum(1 for _ in epochs_of(trainer))
            self._keep(trainer, method)
            self.optimizer_ = optimizer_arrays(trainer)
        return self

    def _begin(self, table: WeightedExamples) -> RunConfig:
        """Forget what was trained before, and return the settings of a new training."""
        self.mean_, self.scale_ = moments(table)
        self.n_iter_, self.validation_losses_ = 0, []
        self.optimizer_: Arrays = {}
        if "method.name" in (self.overrides or {}):
            raise ConfigError("overrides: the classifier has method dt, and no other")
        automatic = min(256, max(32, len(table.y) // 64))
        config = replace(
            RunConfig(),
            {
                **SETTINGS,
                "method.num_blocks": self.num_blocks,
                "method.dropout": self.dropout,
                "train.batch_size": automatic if self.batch_size is None else self.batch_size,
                "train.schedule": "constant" if self.early_stopping else "one-cycle",
                "train.lr": self.learning_rate,
                "train.weight_decay": self.weight_decay,
                "train.seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
                **(self.overrides or {}),
            },
        )
        updates = max(1, len(table.y) // config.train.batch_size)
        epochs = max(LEAST_EPOCHS, math.ceil(LEAST_UPDATES / updates))
        if "train.epochs" not in (self.overrides or {}):
            epochs = epochs if self.epochs is None else self.epochs
            config = replace(config, {"train.epochs": epochs})
        assert isinstance(config.method, DTConfig)
        if config.method.learned:
            raise ConfigError("overrides: the classifier has fixed embeddings")
        self.config_ = to_mapping(config)
        return config

    def _train(self, config: RunConfig, method: Method, table: WeightedExamples) -> Trainer:
        """Train to the last epoch, or until the held-out part has not improved for a while."""
        if not self.early_stopping:
            trainer = self._trainer(config, method, table)
            self.n_iter_ = sum(1 for _ in epochs_of(trainer))
            return trainer
        parts = stratified_split(
            torch.from_numpy(table.y), self.validation_fraction, config.train.seed
        )
        kept, held_out = (table.take(part.numpy()) for part in parts)
        if not len(held_out.y):
            raise ConfigError(
                f"validation_fraction: {self.validation_fraction} of {len(table.y)} is none"
            )
        trainer, best = self._trainer(config, method, kept), Arrays()
        losses = self.validation_losses_
        for self.n_iter_ in epochs_of(trainer):
            losses.append(self._log_loss(method, held_out))
            if losses[-1] == min(losses):
                best = arrays_of(method)
            if len(losses) - losses.index(min(losses)) > self.patience:
                break
        if not best:  # no loss was a number
            raise self._diverged("the predictions")
        load_arrays(method, best)
        return trainer

    def _trainer(self, config: RunConfig, method: Method, table: WeightedExamples) -> Trainer:
        """Return a trainer of all units on the device of training."""
        if len(table.y) < 2:
            raise ConfigError(f"X: wanted two different examples or more, got {len(table.y)}")
        examples = Examples(self._standardised(table.x).float(), torch.from_numpy(table.y))
        weight = torch.from_numpy(table.weight / table.weight.mean()).float()
        return trainer_in_memory(config, method, examples, weight, choose_device(self.device))

    def _log_loss(self, method: Method, table: WeightedExamples) -> float:
        """Return the weighted log-loss of the predictions in nats, in float32."""
        device = method.embedding.weight.device
        x, y = self._standardised(table.x).float().to(device), torch.from_numpy(table.y)
        p = probabilities(method, x).cpu().double()[torch.arange(len(y)), y]
        weight = torch.from_numpy(table.weight)
        return float((-p.clamp_min(1e-12).log() * weight).sum() / weight.sum())

    def _keep(self, trainer: Trainer, method: Method) -> None:
        """Keep the trained weights."""
        if name := trainer.state.not_finite():
            raise self._diverged(f"the weights of {name}")
        self.weights_ = arrays_of(place(method, "cpu"))
        self._method = for_prediction(method)

    def _diverged(self, what: str) -> ConfigError:
        return ConfigError(
            f"learning_rate: {what} are not finite with {self.learning_rate}; try a smaller one"
        )

    # -- inputs ------------------------------------------------------------------------------------

    def _read(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> WeightedExamples:
        """Check examples; those without ``classes`` begin a new training, and give them."""
        begins = classes is None or not hasattr(self, "weights_")
        X, y = validate_data(self, X, y, allow_nd=True, ensure_min_samples=2, reset=begins)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        if not len(y):
            raise ConfigError(
                "sample_weight: no example has a weight above 0, so there is no class"
            )
        self.classes_ = np.unique(y) if classes is None else classes
        labels = np.searchsorted(self.classes_, y)
        if not np.array_equal(self.classes_[np.minimum(labels, len(self.classes_) - 1)], y):
            raise ConfigError("y: has labels that are not in classes")
        x = self._shaped(X, first=begins)
        weight = weight * self._class_weights(labels, weight)[labels]
        return distinct(WeightedExamples(x, labels, weight))

    def _shaped(self, X: NDArray[Any], *, first: bool) -> NDArray[Any]:
        x = channels_first(X, self.channels)
        if first:
            self.shape_ = x.shape[1:]
        if x.shape[1:] != self.shape_:
            raise ConfigError(f"X: wanted inputs of shape {self.shape_}, got {x.shape[1:]}")
        return x

    def _class_weights(self, labels: NDArray[np.int64], weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight of each class; balanced classes have the same sum of weights."""
        count = len(self.classes_)
        if self.class_weight is None:
            return np.ones(count)
        if self.class_weight == "balanced":
            return weight.sum() / (count * np.bincount(labels, weight, count))
        if not isinstance(self.class_weight, Mapping):
            raise ConfigError(
                f"class_weight: wanted a dictionary, 'balanced' or None, got {self.class_weight!r}"
            )
        known = self.classes_.tolist()
        unknown = [label for label in self.class_weight if label not in known]
        # One that another part of the data has is no mistake, if all classes here have a weight.
        if unknown and any(label not in self.class_weight for label in known):
            raise ConfigError(f"class_weight: {unknown[0]!r} is no class, which are {known[:20]}")
        weights = [float(self.class_weight.get(label, 1.0)) for label in known]
        if min(weights) < 0:
            raise ConfigError(f"class_weight: wanted weights of at least 0, got {min(weights)}")
        return np.array(weights)

    def _standardised(self, x: NDArray[Any]) -> Tensor:
        """Return inputs with mean 0 and deviation 1 in the training examples, in float64."""
        shape = (-1,) + (1,) * (x.ndim - 2)
        return torch.from_numpy((x - self.mean_.reshape(shape)) / self.scale_.reshape(shape))

    # -- prediction --------------------------------------------------------------------------------

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities, shape (N, m), with columns in the order of ``classes_``."""
        check_is_fitted(self, "weights_")
        with _value_errors(), threads(_thread_count(self.n_jobs)):
            X = validate_data(self, X, allow_nd=True, reset=False)
            x = self._shaped(X, first=False)
            parts = (self._standardised(x[i : i + CHUNK]) for i in range(0, len(x), CHUNK))
            p = torch.cat([probabilities(self._method, part) for part in parts])
            # The weights of the path average are float32 numbers, whose sum is 1 + 1e-8.
            return (p / p.sum(dim=1, keepdim=True)).numpy()

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the logarithms of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most likely label of each row."""
        columns = self.predict_proba(X).argmax(axis=1)
        return self.classes_[columns]

    # -- pickle ------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and arrays: networks are built again from them."""
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_method"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up parameters and arrays."""
        super().__setstate__(state)
        if hasattr(self, "weights_"):
            config = from_mapping(self.config_, "config_")
            method = build_for_shape(config, self.shape_, len(self.classes_))
            load_arrays(method, self.weights_)
            self._method = for_prediction(method)


def _thread_count(n_jobs: int | None) -> int:
    """Return a number of threads, counted as joblib counts: -1 is all cores."""
    return effective_n_jobs(1 if n_jobs is None else n_jobs)


@contextmanager
def _value_errors() -> Iterator[None]:
    """Report an error of an argument as scikit-learn does."""
    try:
        yield
    except NoPropError as error:
        raise ValueError(str(error)) from None
