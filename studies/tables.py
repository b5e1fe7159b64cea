"""NoPropClassifier next to classifiers of scikit-learn, on its tables and letter recognition.

Five-fold cross-validation, stratified and shuffled with seed 0, the same folds for each classifier.
All have the settings of their class, which were chosen before (NoPropClassifier's on validation
parts of training folds of the same sets, see docs/sklearn.md); the MLP gets standardised features
and enough iterations to converge.

Letter recognition is the file letter-recognition.data of UCI (20,000 rows) in the folder
``--data-dir``; without the option scikit-learn downloads the set from OpenML.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import (
    fetch_openml,
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
)
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from noprop.sklearn import NoPropClassifier
from study import Line, Study, markdown, mean_and_error

TABLES = {
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "digits": load_digits,
    "iris": load_iris,
}
SETS = (*TABLES, "letter")


def load(name: str, folder: Path | None) -> tuple[Any, Any]:
    """Return inputs and labels of a set."""
    if name in TABLES:
        return TABLES[name](return_X_y=True)
    if folder is None:
        found: Any = fetch_openml("letter", version=1, as_frame=False)
        return found.data, found.target
    rows = np.loadtxt(folder / "letter-recognition.data", delimiter=",", dtype=str)
    return rows[:, 1:].astype(float), rows[:, 0]


def classifiers() -> dict[str, Any]:
    """Return a new classifier of each kind."""
    return {
        "NoPropClassifier": NoPropClassifier(random_state=0),
        "MLPClassifier": make_pipeline(
            StandardScaler(), MLPClassifier(max_iter=1000, random_state=0)
        ),
        "HistGradientBoostingClassifier": HistGradientBoostingClassifier(random_state=0),
    }


def measure(key: Line, folder: Path | None) -> Iterable[Line]:
    """Fit one classifier on all folds of one set, and return a line for each."""
    x, y = load(key["set"], folder)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for fold, (train, test) in enumerate(folds.split(x, y)):
        model: Any = classifiers()[key["classifier"]]
        start = time.perf_counter()
        model.fit(x[train], y[train])
        seconds = time.perf_counter() - start
        p = model.predict_proba(x[test])
        labels = model.classes_[p.argmax(axis=1)]
        yield {
            "fold": fold,
            "accuracy": 100 * float(np.mean(labels == y[test])),
            "log_loss": float(log_loss(y[test], p)),
            "seconds": seconds,
        }


def table(study: Study) -> str:
    """Return accuracy, log-loss and seconds of each set and classifier."""
    rows = []
    for name in SETS:
        for kind in classifiers():
            lines = study.lines(set=name, classifier=kind)
            if lines:
                rows.append(
                    [
                        name,
                        kind,
                        mean_and_error([line["accuracy"] for line in lines]),
                        mean_and_error([line["log_loss"] for line in lines], 3),
                        f"{np.median([line['seconds'] for line in lines]):.1f}",
                    ]
                )
    head = ["set", "classifier", "accuracy %", "log-loss nats", "seconds a fit (median)"]
    return markdown(head, rows)


def main() -> None:
    """Measure what has no result yet, and print the table."""
    study = Study(__doc__, "tables.jsonl", variants=SETS)
    options = study.parse()
    keys = ({"set": s, "classifier": c} for s in options.only for c in classifiers())
    study.measure(keys, lambda key: measure(key, options.data_dir))
    print(table(study))


if __name__ == "__main__":
    main()
