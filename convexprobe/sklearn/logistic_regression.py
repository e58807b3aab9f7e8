"""`LogisticRegression`, and what it shares with `LogisticRegressionCV`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model._base import LinearClassifierMixin, SparseCoefMixin
from sklearn.utils import check_random_state
from sklearn.utils._array_api import check_same_namespace
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from convexprobe._arguments import check_bool, check_integer, check_real, shown
from convexprobe.arrays.backend import Array, is_array, like, namespace, to_numpy
from convexprobe.arrays.precision import full_precision
from convexprobe.probes.options import check_weights
from convexprobe.probes.probe import Probe
from convexprobe.probes.selection import make_probe
from convexprobe.sklearn.penalties import coefficients, solve_penalties
from convexprobe.solvers import Solver, by_name
from convexprobe.solvers.solution import Status


class Read(NamedTuple):
    """What was read of the arguments of `fit`.

    Attributes:
        x: rows `(n, d)` in float32 or float64.
        y: labels `(n,)`, as they were given.
        classes: the sorted labels, host `(k,)`.
        codes: indices of the labels among them, host `(n,)`.
        weights: of the rows, times those of their classes, host `(n,)`, or None.
    """

    x: Array
    y: Array
    classes: np.ndarray
    codes: np.ndarray
    weights: np.ndarray | None


class Logistic(LinearClassifierMixin, SparseCoefMixin, BaseEstimator):
    """What both estimators share: the checks, the reading of rows and labels, probabilities."""

    def _check(self, l1_ratio: str) -> Solver:
        """The solver with its seed, after a check of the parameters; `l1_ratio` names one.

        Raises:
            TypeError, ValueError: a parameter that is refused, or asks for what is not here.
        """
        ratio = getattr(self, l1_ratio)
        ratios = [0.0 if r is None else r for r in np.atleast_1d(np.asarray(ratio, dtype=object))]
        if any(ratios) or self.penalty in ("l1", "elasticnet"):
            raise ValueError(
                f"{l1_ratio}: only the L2 penalty is solved here, found penalty={self.penalty!r} "
                f"and {l1_ratio}={ratio!r}; use scikit-learn's class for L1 and elastic net"
            )
        if self.penalty not in ("l2", "deprecated", None):
            raise ValueError(f'penalty: expected "l2" or None, found {shown(self.penalty)}')
        if self.dual:
            raise ValueError("dual: only the primal problem is solved here; pass dual=False")
        if isinstance(self.solver, str) and self.solver == "liblinear":
            raise ValueError(
                "solver: 'liblinear', which penalises the intercept, is not here; use 'auto', or "
                "scikit-learn's class"
            )
        check_bool("fit_intercept", self.fit_intercept)
        check_real("tol", self.tol, above=0.0)
        check_integer("max_iter", self.max_iter)
        solver = by_name(self.solver)
        draws = is_dataclass(solver) and any(f.name == "seed" for f in fields(solver))
        if not draws or self.random_state is None:  # None would draw from the global random state
            return solver
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return replace(solver, seed=seed)  # type: ignore[type-var]

    def _read(self, X: Any, y: Any, sample_weight: Any) -> Read:
        """Check and encode what `fit` is given.

        Arrays stay in their library where scikit-learn's array API dispatch is on.

        Raises:
            TypeError, ValueError: rows or labels that scikit-learn refuses, or weights that are
                refused here.
        """
        stays = get_config()["array_api_dispatch"] and is_array(X)
        xp = namespace(X) if stays else np
        X, y = validate_data(self, X, y, dtype=[xp.float64, xp.float32])
        check_classification_targets(y)
        classes, codes = np.unique(to_numpy(y), return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y: expected samples of at least 2 classes, found one class: {classes[0]!r}"
            )
        weights = check_weights(sample_weight, X.shape[0])
        if weights is not None and not (weights > 0).any():
            raise ValueError("sample_weight: expected a positive weight, found only zero weights")
        if self.class_weight is not None:
            chosen = self.class_weight
            if isinstance(chosen, Mapping) and not set(chosen) <= set(classes.tolist()):
                raise ValueError(
                    "class_weight: expected the class labels as keys, "
                    f"{classes.tolist()!r}, found {list(chosen)!r}"
                )
            factors = compute_class_weight(
                chosen, classes=classes, y=to_numpy(y), sample_weight=weights
            )
            weights = factors[codes] * (1.0 if weights is None else weights)
            weights = check_weights(weights, X.shape[0])
        return Read(X, y, classes, codes, weights)

    def _take(self, read: Read, probe: Probe) -> None:
        """Set the attributes of a fit."""
        ours = to_numpy(probe.weights), to_numpy(probe.bias)
        self.coef_, self.intercept_ = (like(a, read.x) for a in coefficients(*ours))
        self.classes_ = (
            read.classes if isinstance(read.y, np.ndarray) else like(read.classes, read.y)
        )
        self.probe_, self.gap_, self.status_ = probe, probe.gap, probe.status

    def _warn(self, gap: float, limit: float) -> None:
        """Warn that the steps ran out."""
        name = self.solver if isinstance(self.solver, str) else type(self.solver).__name__
        warnings.warn(
            f"{name} failed to converge: after max_iter={self.max_iter} steps the gap is {gap:.1e} "
            f"nats, and tol={self.tol:g} asks for {limit:.1e}. Increase the number of iterations.",
            ConvergenceWarning,
            stacklevel=3,
        )

    def predict_log_proba(self, X: Any) -> Array:
        """Log-probabilities `(n, k)` of rows `(n, d)`, columns in the order of `classes_`.

        Raises:
            ValueError: rows that scikit-learn refuses, of another width say.
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        check_same_namespace(X, self, attribute="coef_", method="predict_log_proba")
        z = self.decision_function(X)
        xp = namespace(z)
        if z.ndim == 2:
            z = z - xp.max(z, axis=1, keepdims=True)
            return z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
        zero = xp.zeros_like(z)
        below, above = xp.where(z < 0, z, zero), xp.where(z > 0, -z, zero)
        rest = xp.log1p(xp.exp(-xp.abs(z)))  # an infinite logit is no difference of infinities
        return xp.stack([above - rest, below - rest], axis=1)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities `(n, k)` of rows `(n, d)`; see `predict_log_proba`."""
        check_same_namespace(X, self, attribute="coef_", method="predict_proba")
        log_p = self.predict_log_proba(X)
        return namespace(log_p).exp(log_p)


class LogisticRegression(Logistic):
    """scikit-learn's logistic regression with the L2 penalty, with a certificate.

    Minimises `C sum_i s_i loss_i + ||w||^2 / 2`, the intercept not penalised: softmax for three
    classes or more, one vector for two. The parameters are scikit-learn's; those below mean
    something else or less.

    Args:
        penalty: "l2" or None, which is `C=inf`. ("deprecated" is scikit-learn's word for "l2".)
        C: the inverse of the penalty's strength, positive; infinity for no penalty, which leaves no
            bound but 0.
        l1_ratio: 0 or None.
        dual: False.
        tol: the square root of the relative gap: a fit stops when a rigorous bound says that the
            objective, per unit of weight, is within `tol**2 * H(Y)` of its optimum, where `H(Y)` is
            the entropy of the labels. scikit-learn's bounds the gradient. A gap is like the square
            of a gradient, so that the same number asks for about the same coefficients.
        solver: a name in `convexprobe.SOLVERS` or a configured solver of `convexprobe.solvers`.
        max_iter: steps at most; a ConvergenceWarning tells that they ran out.
        random_state: seed of the solvers that draw; None is a fixed seed.
        intercept_scaling, n_jobs, verbose: accepted, without effect.

    Attributes:
        coef_: `(1, d)` for two classes, else `(k, d)`.
        intercept_: `(1,)` or `(k,)`; zeros without `fit_intercept`. A class whose rows all have the
            weight 0 has minus infinity.
        classes_: sorted labels, `(k,)`.
        n_iter_: steps taken, `(1,)`.
        n_features_in_, feature_names_in_: as in scikit-learn.
        gap_: bound on the objective per unit of weight less its optimum, nats; times `C S`, it is
            of scikit-learn's objective.
        status_: how the fit ended, a `convexprobe.Status`.
        probe_: the `convexprobe.Probe`, with the loss, `H(Y)` and `l2`.
    """

    def __init__(
        self,
        penalty: str | None = "l2",
        *,
        C: float = 1.0,
        l1_ratio: float | None = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: Any = None,
        random_state: Any = None,
        solver: str | Solver = "auto",
        max_iter: int = 100,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs

    @full_precision()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows `(n, d)`, labels `(n,)` and weights `(n,)`, or None for equal weights.

        Warns:
            sklearn.exceptions.ConvergenceWarning: the steps ran out.

        Raises:
            TypeError, ValueError: a parameter or input that is refused.
        """
        solver = self._check("l1_ratio")
        C = check_real("C", self.C, above=0.0)
        if self.penalty is None:
            if C != 1.0:
                message = "Setting penalty=None will ignore the C and l1_ratio parameters"
                warnings.warn(message, UserWarning, stacklevel=2)
            C = np.inf
        check_bool("warm_start", self.warm_start)
        start = None
        if self.warm_start and hasattr(self, "coef_"):
            self.densify()
            start = to_numpy(self.coef_), to_numpy(self.intercept_)
        read = self._read(X, y, sample_weight)
        problem, (solution,) = solve_penalties(
            read.x,
            read.codes,
            len(read.classes),
            read.weights,
            [C],
            bias=self.fit_intercept,
            solver=solver,
            tol=self.tol**2,
            max_iter=self.max_iter,
            start=start,
        )
        self._take(read, make_probe(problem, tuple(read.classes.tolist()), 0, solution))
        self.n_iter_ = like(np.array([solution.steps], dtype=np.int32), read.x)
        if solution.status is Status.MAX_STEPS:
            self._warn(solution.gap, self.tol**2 * solution.label_entropy)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags
