"""scikit-learn's estimators, certified: `LogisticRegression` and `LogisticRegressionCV`.

They take the place of the classes of `sklearn.linear_model` by a change of the import, and have
`gap_`, `status_` and `probe_` beside the usual attributes. `docs/scikit_learn.md` has what differs.
"""

from __future__ import annotations

from convexprobe.sklearn.cross_validation import LogisticRegressionCV
from convexprobe.sklearn.logistic_regression import LogisticRegression

__all__ = ["LogisticRegression", "LogisticRegressionCV"]
