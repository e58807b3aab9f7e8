"""`LogisticRegressionCV`: a path of penalties on every fold, and the one that scores best."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.metrics import get_scorer, make_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import Bunch
from sklearn.utils.metadata_routing import (
    UNUSED,
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params

from convexprobe._arguments import check_bool, check_integer, check_real, shown
from convexprobe.arrays.backend import to_numpy
from convexprobe.arrays.precision import full_precision
from convexprobe.probes.selection import make_probe
from convexprobe.problem.objective import Problem
from convexprobe.sklearn.logistic_regression import Logistic, LogisticRegression, Read
from convexprobe.sklearn.penalties import coefficients, solve_penalties
from convexprobe.solvers import Solver
from convexprobe.solvers.path import Fitted
from convexprobe.solvers.solution import Status


class Fold(NamedTuple):
    """What was found on one fold, at every `C`.

    Attributes:
        coef, intercept: in scikit-learn's shapes, `(v, 1 or k, d)` and `(v, 1 or k)`.
        scores: on the held-out rows, `(v,)`.
        gaps: nats, `(v,)`.
        limits: gaps that `tol` asks for, nats, `(v,)`.
        steps: `(v,)`.
        statuses: how the fits ended, `(v,)` of `Status`.
    """

    coef: np.ndarray
    intercept: np.ndarray
    scores: np.ndarray
    gaps: np.ndarray
    limits: np.ndarray
    steps: np.ndarray
    statuses: np.ndarray


class LogisticRegressionCV(Logistic):
    """Logistic regression whose `C` is chosen by cross-validation, every fit with a certificate.

    The parameters are scikit-learn's; those below mean something else or less. Those of
    `LogisticRegression` mean the same here.

    Args:
        Cs: the values of `C`, or how many to take from 1e-4 to 1e4.
        l1_ratios: None or (0,).
        scoring: as in scikit-learn; None is accuracy.
        n_jobs: processes over which folds are dealt out, as in scikit-learn.
        use_legacy_attributes: the shapes of scikit-learn before 1.10 (True) or after (False).

    Attributes:
        C_, Cs_, l1_ratio_, l1_ratios_, coefs_paths_, scores_, n_iter_: as in scikit-learn.
        coef_, intercept_, classes_, n_features_in_, feature_names_in_: likewise.
        gaps_: bounds of every fold's fits, nats, `(folds, Cs)`.
        statuses_: how those fits ended, `(folds, Cs)` of `convexprobe.Status`.
        gap_, status_, probe_: of the fit to all rows; only with `refit`.
    """

    # scikit-learn reads the request from this name: weights go to the scorer, not to `score`.
    __metadata_request__score = {"sample_weight": UNUSED}  # noqa: RUF012

    def __init__(
        self,
        *,
        Cs: int | Sequence[float] = 10,
        l1_ratios: Sequence[float] | None = None,
        fit_intercept: bool = True,
        cv: Any = None,
        dual: bool = False,
        penalty: str = "l2",
        scoring: Any = None,
        solver: str | Solver = "auto",
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1.0,
        random_state: Any = None,
        use_legacy_attributes: bool = True,
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.dual = dual
        self.penalty = penalty
        self.scoring = scoring
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.refit = refit
        self.intercept_scaling = intercept_scaling
        self.random_state = random_state
        self.use_legacy_attributes = use_legacy_attributes

    @full_precision()
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Fit to rows `(n, d)`, labels `(n,)` and weights `(n,)`, or None for equal weights.

        `params` are for the splitter and the scorer, with scikit-learn's metadata routing.

        Warns:
            sklearn.exceptions.ConvergenceWarning: the steps ran out, once for all fits.

        Raises:
            TypeError, ValueError: a parameter or input that is refused.
        """
        _raise_for_params(params, self, "fit")
        solver = self._check("l1_ratios")
        for name in ("refit", "use_legacy_attributes"):
            check_bool(name, getattr(self, name))
        if self.l1_ratios is not None and len(self.l1_ratios) != 1:
            raise ValueError(f"l1_ratios: expected None or (0,), found {shown(self.l1_ratios)}")
        self.Cs_ = _grid(self.Cs)
        if _routing_enabled():
            routed = process_routing(self, "fit", sample_weight=sample_weight, **params)
        else:
            weighed = {} if sample_weight is None else {"sample_weight": sample_weight}
            routed = Bunch(splitter=Bunch(split={}), scorer=Bunch(score=weighed))
        read = self._read(X, y, sample_weight)
        splits = check_cv(self.cv, read.y, classifier=True).split(
            read.x, read.y, **routed.splitter.split
        )
        solve = partial(
            solve_penalties,
            bias=self.fit_intercept,
            solver=solver,
            tol=self.tol**2,
            max_iter=self.max_iter,
        )
        scorer = _with_labels(self._get_scorer(), read.classes)
        folds = Parallel(n_jobs=self.n_jobs)(
            delayed(_fold)(read, train, test, self.Cs_, solve, scorer, routed.scorer.score)
            for train, test in splits
        )
        together = Fold(*(np.stack(part) for part in zip(*folds, strict=True)))
        self.gaps_, self.statuses_ = together.gaps, together.statuses
        ended = Status.MAX_STEPS in together.statuses
        if self.refit:
            best = int(np.argmax(together.scores.sum(axis=0)))
            chosen = self.Cs_[best]
            problem, (solution,) = solve(
                read.x,
                read.codes,
                len(read.classes),
                read.weights,
                [chosen],
                start=(together.coef[:, best].mean(axis=0), together.intercept[0, best]),
            )
            self._take(read, make_probe(problem, tuple(read.classes.tolist()), 0, solution))
            ended = ended or solution.status is Status.MAX_STEPS
        else:
            own = np.arange(len(folds)), np.argmax(together.scores, axis=1)
            chosen = float(self.Cs_[own[1]].mean())
            self.coef_ = together.coef[own].mean(axis=0)
            self.intercept_ = together.intercept[own].mean(axis=0)
            self.classes_ = read.classes
        self._set_path(together, chosen)
        if ended:
            self._warn(together.gaps.max(), together.limits.min())
        return self

    def _set_path(self, folds: Fold, chosen: float) -> None:
        """Set the attributes of the path, in scikit-learn's old shapes or in its new ones."""
        self.C_: Any
        self.l1_ratio_: Any
        self.coefs_paths_: Any
        self.scores_: Any
        paths = folds.coef
        if self.fit_intercept:
            paths = np.concatenate([paths, folds.intercept[:, :, :, None]], axis=3)
        ratios = [None] if self.l1_ratios is None else list(self.l1_ratios)
        self.l1_ratios_ = np.asarray(ratios)
        if not self.use_legacy_attributes:
            self.C_, self.l1_ratio_ = float(chosen), 0.0
            self.coefs_paths_ = paths[:, None]
            self.scores_, self.n_iter_ = folds.scores[:, None], folds.steps[:, None]
            return
        names = self.classes_ if len(self.classes_) > 2 else self.classes_[1:]
        self.C_, self.l1_ratio_ = np.full(len(names), chosen), np.zeros(len(names))
        scores, steps = folds.scores, folds.steps[None]
        paths = np.moveaxis(paths, 2, 0)  # classes first
        if self.l1_ratios is not None:
            scores, steps, paths = scores[:, :, None], steps[..., None], paths[:, :, :, None]
        self.scores_ = {name: scores.copy() for name in names}
        self.coefs_paths_ = dict(zip(names, paths, strict=True))
        self.n_iter_ = steps

    def score(self, X: Any, y: Any, *, sample_weight: Any = None, **score_params: Any) -> float:
        """The score `scoring` on rows `(n, d)` with labels `(n,)`.

        Raises:
            ValueError: parameters without metadata routing.
        """
        _raise_for_params(score_params, self, "score")
        if sample_weight is not None:
            score_params["sample_weight"] = sample_weight
        routed = score_params
        if _routing_enabled():
            routed = process_routing(self, "score", **score_params).scorer.score
        return self._get_scorer()(self, X, y, **routed)

    def get_metadata_routing(self) -> MetadataRouter:
        """Where metadata goes: to the splitter's `split` and the scorer."""
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
            .add(
                scorer=self._get_scorer(),
                method_mapping=MethodMapping()
                .add(caller="score", callee="score")
                .add(caller="fit", callee="score"),
            )
        )

    def _get_scorer(self) -> Any:
        return get_scorer("accuracy" if self.scoring is None else self.scoring)


def _grid(Cs: Any) -> np.ndarray:
    """The values of `C`, `(v,)`."""
    if isinstance(Cs, Integral):
        return np.logspace(-4, 4, check_integer("Cs", Cs, least=1))
    values = np.asarray([check_real(f"Cs[{i}]", C, above=0.0) for i, C in enumerate(Cs)])
    if not len(values):
        raise ValueError("Cs: expected at least one value, found none")
    return values


def _fold(
    read: Read,
    train: np.ndarray,
    test: np.ndarray,
    Cs: np.ndarray,
    solve: partial[tuple[Problem, list[Fitted]]],
    scorer: Any,
    score_params: dict[str, Any],
) -> Fold:
    """Fit to the rows of a fold at every `C`, and score on those that it holds out."""
    weights = None if read.weights is None else read.weights[train]
    k = len(read.classes)
    problem, solutions = solve(
        read.x[train], read.codes[train], k, weights, Cs.tolist(), start=None
    )
    own = _check_method_params(read.x, score_params, indices=test)
    coefs, intercepts, scores = [], [], []
    for C, solution in zip(Cs.tolist(), solutions, strict=True):
        probe = make_probe(problem, tuple(range(k)), 0, solution)
        model = LogisticRegression(C=C)
        model.classes_ = read.classes
        model.coef_, model.intercept_ = coefficients(to_numpy(probe.weights), to_numpy(probe.bias))
        scores.append(scorer(model, read.x[test], read.y[test], **own))
        coefs.append(model.coef_)
        intercepts.append(model.intercept_)
    return Fold(
        np.stack(coefs),
        np.stack(intercepts),
        np.asarray(scores),
        np.array([s.gap for s in solutions]),
        np.array([solve.keywords["tol"] * s.label_entropy for s in solutions]),
        np.array([s.steps for s in solutions], dtype=np.int32),
        np.array([s.status for s in solutions], dtype=object),
    )


def _with_labels(scorer: Any, classes: np.ndarray) -> Any:
    """The scorer, told of all classes if it asks for them: a fold may hold out only some."""
    function = getattr(scorer, "_score_func", None)
    asked = {} if function is None else signature(function).parameters
    if "labels" not in asked:
        return scorer
    told = {"labels": classes}
    if len(classes) == 2 and "pos_label" in asked:
        told["pos_label"] = classes[-1]
    return make_scorer(
        function,
        greater_is_better=scorer._sign == 1,
        response_method=scorer._response_method,
        **{**scorer._kwargs, **told},
    )
