"""Linear evaluation of frozen features, as CLIP and DINOv2 do it, every fit certified.

    python examples/linear_evaluation.py [--quick]

The recipe: logistic regression on features that are not trained further, at 45 values of C from
1e-6 to 1e5; the one with the best top-1 accuracy on held-out rows; a fit to all rows with it; top-1
and top-5 accuracy on test rows. (CLIP: Radford et al. 2021, section 3.2; the 45 values are
DINOv2's, Oquab et al. 2023.) The estimator is scikit-learn's but for its import.

Here the features are the pixels of scikit-learn's digits and random features of them, so that the
example downloads nothing; features of a model of yours go the same way. `--quick` takes the pixels
alone.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import top_k_accuracy_score
from sklearn.model_selection import PredefinedSplit

from convexprobe import Status
from convexprobe.sklearn import LogisticRegressionCV  # was: from sklearn.linear_model

CS = 10.0 ** np.linspace(-6, 5, 45)


def features(quick: bool) -> dict[str, np.ndarray]:
    """Rows `(1797, d)` by the name of what made them."""
    pixels = load_digits().data / 16
    rng = np.random.default_rng(0)
    found = {"pixels": pixels}
    if not quick:
        for width in (128, 512):
            weights = rng.standard_normal((64, width)) / 8
            found[f"{width} random ReLU"] = np.maximum(pixels @ weights, 0.0)
    return found


def evaluate(x: np.ndarray, y: np.ndarray) -> tuple[LogisticRegressionCV, float, float]:
    """The chosen classifier, and its top-1 and top-5 accuracy on test rows.

    Of the rows, in random order, three fifths are fitted to and one fifth is held out for the
    choice; the last fifth is for the test.
    """
    order = np.random.default_rng(0).permutation(len(y))
    n, held = len(y) * 4 // 5, len(y) // 5
    train, test = order[:n], order[n:]
    fold = np.where(np.arange(n) < n - held, -1, 0)  # -1: never held out
    model = LogisticRegressionCV(
        Cs=CS, cv=PredefinedSplit(fold), scoring="accuracy", max_iter=1000,
        use_legacy_attributes=False,
    ).fit(x[train], y[train])  # fmt: skip
    proba = model.predict_proba(x[test])
    top = [float(top_k_accuracy_score(y[test], proba, k=k)) for k in (1, 5)]
    return model, top[0], top[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the pixels alone")
    args = parser.parse_args()
    labels = load_digits().target
    print(f"{'features':18} {'d':>4} {'C':>9} {'held-out':>8} {'top-1':>6} {'top-5':>6} "
          f"{'gap (nats)':>10}  fits")  # fmt: skip
    for name, x in features(args.quick).items():
        model, first, fifth = evaluate(x, labels)
        certified = int((model.statuses_ == Status.CERTIFIED).sum())
        print(f"{name:18} {x.shape[1]:4} {model.C_:9.2e} {model.scores_.max():8.1%} {first:6.1%} "
              f"{fifth:6.1%} {model.gap_:10.1e}  {certified} of {len(CS)} certified, "
              f"and the last {model.status_.name.lower()}")  # fmt: skip


if __name__ == "__main__":
    main()
