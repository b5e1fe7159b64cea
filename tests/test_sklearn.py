"""The classifier of scikit-learn: its own checks, and what they do not check."""

import pickle
import pickletools
from typing import Any

import numpy as np
import pytest
import torch
from joblib import effective_n_jobs
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine, make_blobs
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_class_weight_classifiers,
    check_classifiers_train,
    parametrize_with_checks,
)

import noprop.sklearn
from noprop.config import from_mapping
from noprop.data.weighted import WeightedExamples, channels_first, distinct, moments
from noprop.in_memory import build_for_shape, load_arrays
from noprop.sklearn import NoPropClassifier

SMALL: dict[str, Any] = {
    "num_blocks": 1, "epochs": 8, "learning_rate": 1e-2, "batch_size": 64, "random_state": 0
}  # fmt: skip
# The checks that judge predictions, and so depend on the default settings.
LEARNING = (check_classifiers_train, check_class_weight_classifiers)
IMAGES = np.random.default_rng(0).integers(0, 255, (20, 6, 5, 3)).astype(np.uint8)
TWO = np.arange(20) % 2


def wine() -> Any:
    return load_wine(return_X_y=True)


def quick(**changes: Any) -> NoPropClassifier:
    return NoPropClassifier(**{**SMALL, "epochs": 2, **changes})


def weights(model: NoPropClassifier) -> np.ndarray:
    return np.concatenate([model.weights_[name].ravel() for name in sorted(model.weights_)])


@parametrize_with_checks([NoPropClassifier(**SMALL)])
def test_the_checks_of_scikit_learn(estimator, check):
    """All of them: the list of expected failures is empty."""
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("check", LEARNING, ids=lambda check: check.__name__)
def test_the_defaults_learn_what_scikit_learn_asks_for(check):
    check("NoPropClassifier", NoPropClassifier())


def test_it_learns_wine_and_digits_in_a_pipeline():
    """After a tenth of the training; a network that is not trained has 39 % and 10 % right."""
    for load in (load_wine, load_digits):
        x, y = (part[:700] for part in load(return_X_y=True))
        train_x, test_x, train_y, test_y = train_test_split(x, y, stratify=y, random_state=0)
        model = make_pipeline(StandardScaler(), NoPropClassifier(**SMALL))
        assert model.fit(train_x, train_y).score(test_x, test_y) >= 0.9


def test_a_grid_search_chooses_among_clones():
    x, y = wine()
    search = GridSearchCV(quick(), {"learning_rate": [1e-6, 1e-2], "epochs": [5]}, cv=2)
    assert search.fit(x, np.array(["a", "b", "c"])[y]).best_params_["learning_rate"] == 1e-2
    assert set(search.predict(x)) <= {"a", "b", "c"}
    best: Any = search.best_estimator_
    copied: Any = clone(best)
    assert copied.get_params() == best.get_params()


@pytest.mark.parametrize("seed", [3, np.random.RandomState(3)], ids=["int", "state"])
def test_the_same_seed_gives_the_same_bits_and_moves_no_global_state(seed):
    x, y = wine()
    state, numpy_state = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    first = weights(quick(random_state=3).fit(x, y))
    assert np.array_equal(first, weights(quick(random_state=seed).fit(x, y)))
    assert not np.array_equal(first, weights(quick(random_state=4).fit(x, y)))
    assert torch.equal(state, torch.get_rng_state())
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002


# -- weights ---------------------------------------------------------------------------------------


def test_a_weight_is_a_repetition_to_the_last_bit_and_rows_have_no_order():
    x, y = wine()
    count = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = quick().fit(x, y, count)
    order = np.random.default_rng(1).permutation(count.sum())
    repeated = quick().fit(x.repeat(count, 0)[order], y.repeat(count)[order])
    assert np.array_equal(weights(weighted), weights(repeated))
    assert not np.array_equal(weights(weighted), weights(quick().fit(x, y)))


def test_the_weights_are_in_the_loss():
    """Labels of pure noise, three quarters of weight on class 0: its mean probability is 3/4."""
    x = np.random.default_rng(0).normal(size=(256, 2))
    y = np.arange(256) % 2
    plain, heavy = (quick(epochs=8).fit(x, y, np.where(y == 0, w, 1.0)) for w in (1, 3))
    assert abs(plain.predict_proba(x)[:, 0].mean() - 0.5) < 0.05
    assert abs(heavy.predict_proba(x)[:, 0].mean() - 0.75) < 0.05


def test_probabilities_are_at_most_1_and_sum_to_1():
    """Five float32 weights have the sum 1 + 1.5e-8; scikit-learn's metrics refuse more than 1."""
    x = np.concatenate([np.full((20, 2), -1.0), np.full((20, 2), 1.0)])
    x += np.random.default_rng(0).normal(scale=1e-3, size=x.shape)
    p = quick(num_blocks=5).fit(x, np.arange(40) // 20).predict_proba(x)
    assert p.max() <= 1
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=0, atol=1e-15)


@pytest.mark.slow
def test_a_class_of_almost_all_weight_is_the_answer_everywhere():
    """Two of three overlapping classes have a ten millionth of the weight of the first."""
    x, y = make_blobs(centers=3, random_state=0, cluster_std=20)[:2]
    train, test, labels, _ = train_test_split(x, y, test_size=0.5, random_state=0)
    weight = {0: 1e3, 1: 1e-4, 2: 1e-4}
    model = NoPropClassifier(num_blocks=1, class_weight=weight, random_state=0).fit(train, labels)
    assert (model.predict(test) == 0).mean() >= 0.95


def test_balanced_classes_have_equal_weight():
    """Class 0 three times as often: balanced weights are those that make up for it, exactly."""
    x, y = np.random.default_rng(0).normal(size=(80, 3)), (np.arange(80) % 4 == 0).astype(int)
    balanced = quick(class_weight="balanced").fit(x, y)
    by_hand = quick().fit(x, y, np.where(y == 0, 80 / 120, 80 / 40))
    given = quick(class_weight={0: 80 / 120, 1: 80 / 40}).fit(x, y)
    assert np.array_equal(weights(balanced), weights(by_hand))
    assert np.array_equal(weights(given), weights(by_hand))
    assert not np.array_equal(weights(given), weights(quick().fit(x, y)))
    weight = 1.0 + np.arange(80) % 3  # the classes' sums count these weights
    share = weight.sum() / (2 * np.bincount(y, weight))
    weighted = quick(class_weight="balanced").fit(x, y, weight)
    np.testing.assert_allclose(weights(weighted), weights(quick().fit(x, y, weight * share[y])))


def test_distinct_examples_carry_the_weight_of_all_their_copies():
    x = np.array([[1.0, 0.0], [2.0, 5.0], [1.0, -0.0], [1.0, 0.0], [7.0, 7.0]])
    table = distinct(
        WeightedExamples(x, np.array([0, 1, 0, 1, 1]), np.array([1.0, 2.0, 4.0, 8.0, 0.0]))
    )
    found = {(*row, label): w for row, label, w in zip(*map(np.ndarray.tolist, (
        table.x, table.y, table.weight)), strict=True) for row in [tuple(row)]}  # fmt: skip
    assert found == {(1.0, 0.0, 0): 5.0, (2.0, 5.0, 1): 2.0, (1.0, 0.0, 1): 8.0}


def test_moments_are_weighted_and_keep_their_digits_far_from_zero():
    x = np.array([[1e9, 1.0], [1e9 + 4, 1.0]])
    mean, scale = moments(WeightedExamples(x, np.zeros(2, np.int64), np.array([3.0, 1.0])))
    assert mean.tolist() == [1e9 + 1, 1.0]
    np.testing.assert_allclose(scale, [3**0.5, 1.0], rtol=1e-12)


# -- inputs ----------------------------------------------------------------------------------------


def test_images_of_either_order_are_the_same():
    """Grey images too, with or without an axis for the one channel."""
    last, first = quick().fit(IMAGES, TWO), quick().fit(np.moveaxis(IMAGES, 3, 1), TWO)
    assert last.shape_ == first.shape_ == (3, 6, 5)
    assert np.array_equal(weights(last), weights(first))
    assert "block-1/module/image.encoder.0.weight" in last.weights_
    assert last.weights_["block-1/module/image.encoder.0.weight"].ndim == 4
    grey = quick().fit(IMAGES[..., 0], TWO)
    assert np.array_equal(weights(grey), weights(quick().fit(IMAGES[..., :1], TWO)))
    assert grey.predict_proba(IMAGES[..., 0]).shape == (20, 2)


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((2, 3, 5, 3), "auto", "channels may be axis 1 or axis 3"),
        ((2, 12, 5, 9), "auto", "channels may be axis 1 or axis 3"),
        ((2, 3, 5, 3, 1), "auto", "2, 3 or 4 dimensions"),
        ((2, 3, 5, 3), "middle", "channels must be 'auto'"),
    ],
)
def test_channels_that_are_not_known_are_asked_for(shape, channels, words):
    with pytest.raises(Exception, match=words):
        channels_first(np.zeros(shape), channels)
    assert channels_first(np.zeros((2, 12, 5, 9)), "last").shape == (2, 9, 12, 5)


def test_a_data_frame_keeps_its_names():
    frame: Any = load_wine(as_frame=True)
    model = quick().fit(frame.data, frame.target)
    assert list(vars(model)["feature_names_in_"]) == list(frame.data.columns)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.data.iloc[:, ::-1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_blocks": 0}, "method.num_blocks"),
        ({"epochs": 0}, "train.epochs"),
        ({"overrides": {"method.name": "ct"}}, "overrides: the classifier has method dt, and"),
        ({"overrides": {"train.epoch": 1}}, "did you mean train.epochs"),
        ({"class_weight": "even"}, "class_weight: wanted a dictionary"),
        ({"early_stopping": True, "validation_fraction": 0.01}, "validation_fraction"),
        ({"device": "abacus"}, "abacus"),
        ({"learning_rate": 1e30}, "learning_rate: the weights of block-1 are not finite"),
        ({"learning_rate": 1e30, "early_stopping": True}, "learning_rate: the predictions are not"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"class_weight": {"1": 2.0}}, "class_weight: '1' is no class, which are"),
    ],
)
def test_a_wrong_argument_is_a_value_error_that_names_it(changes, words):
    with pytest.raises(ValueError, match=words):
        quick(**changes).fit(IMAGES[..., 0, 0], TWO)
    with pytest.raises(ValueError, match="shape"):
        quick().fit(IMAGES, TWO).predict(IMAGES[:, :, :4])


# -- more training ---------------------------------------------------------------------------------


def test_partial_fit_continues():
    """Loss and optimizer go on from call to call; a first call names the classes."""
    x, y = wine()
    names = np.array(["a", "b", "c"])
    model = quick()
    with pytest.raises(ValueError, match="classes: must be given in the first call"):
        model.partial_fit(x, names[y])
    scores = []
    for call in range(12):
        half = slice(call % 2, None, 2)
        model.partial_fit(x[half], names[y[half]], classes=names if call == 0 else None)
        scores.append(model.score(x, names[y]))
    assert model.n_iter_ == 12
    assert scores[0] < scores[-1] > 0.95
    steps = {float(v) for n, v in model.optimizer_.items() if n.endswith("/step")}
    assert steps == {12.0}  # one mini-batch of 64 in each half of 178 examples
    with pytest.raises(ValueError, match="labels that are not in classes"):
        model.partial_fit(x, np.full(len(x), "d"))


def test_each_partial_fit_draws_other_noise(monkeypatch):
    """And the same noise when all calls are made again."""
    x, y = wine()
    seeds: list[int] = []
    real = NoPropClassifier._trainer

    def noted(self, config, *rest):
        seeds.append(config.train.seed)
        return real(self, config, *rest)

    monkeypatch.setattr(NoPropClassifier, "_trainer", noted)
    for _ in range(2):
        model = quick()
        for _ in range(3):
            model.partial_fit(x, y, classes=np.arange(3))
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds)) == 3


def test_weights_of_all_classes_may_name_one_that_is_absent():
    """As in a fold without a rare class."""
    x, y = wine()
    known = quick(class_weight={0: 1, 1: 2, 2: 3}).fit(x, y)
    more = quick(class_weight={0: 1, 1: 2, 2: 3, 9: 4}).fit(x, y)
    assert np.array_equal(weights(known), weights(more))


def test_jobs_are_counted_as_joblib_does(monkeypatch):
    """-1 is all cores; the number of threads is the caller's again afterwards."""
    seen = []
    real = noprop.sklearn.threads
    monkeypatch.setattr(noprop.sklearn, "threads", lambda n: seen.append(n) or real(n))
    x, y = wine()
    before = torch.get_num_threads()
    for jobs in (None, 1, -1):
        quick(n_jobs=jobs, epochs=1).fit(x, y)
    assert seen == [1, 1, effective_n_jobs(-1)]
    assert torch.get_num_threads() == before


def test_the_loss_of_the_held_out_part_counts_weights():
    x, y = wine()
    weight = 1.0 + np.arange(len(y)) % 5 * (y == 1)
    model = quick().fit(x, y)
    method = build_for_shape(from_mapping(model.config_, "config_"), model.shape_, 3)
    load_arrays(method, model.weights_)
    found = model._log_loss(method, WeightedExamples(x, y, weight))
    p = model.predict_proba(x)
    assert found == pytest.approx(log_loss(y, p, sample_weight=weight), rel=1e-5)
    assert found != pytest.approx(log_loss(y, p), rel=1e-2)


def test_early_stopping_keeps_the_best_epoch():
    x, y = wine()
    y = np.random.default_rng(0).permutation(y)  # nothing to learn, so it overfits
    model = quick(epochs=60, early_stopping=True, patience=4, validation_fraction=0.3).fit(x, y)
    losses = model.validation_losses_
    best = int(np.argmin(losses))
    assert model.n_iter_ == len(losses) == best + 1 + 4 < 60
    again = quick(epochs=best + 1, early_stopping=True, patience=99, validation_fraction=0.3)
    assert np.array_equal(weights(model), weights(again.fit(x, y)))


# -- files -----------------------------------------------------------------------------------------


def test_a_pickle_holds_arrays_and_parameters_and_predicts_the_same():
    """It names no class of torch or of the package but the classifier itself."""
    x, y = wine()
    model = quick().fit(x, y)
    data = pickle.dumps(model, protocol=0)
    names = {str(arg) for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    own = {name for name in names if name.split(".")[0].split(" ")[0] in ("torch", "noprop")}
    assert own == {"noprop.sklearn NoPropClassifier"}
    assert np.array_equal(pickle.loads(data).predict_proba(x), model.predict_proba(x))
    again = pickle.loads(data).partial_fit(x, y)
    assert np.array_equal(weights(again), weights(model.partial_fit(x, y)))


def test_the_module_asks_for_its_extra(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'noprop\[sklearn\]'"):
        importlib.reload(noprop.sklearn)
