"""Linear classifier probes, certified optimal, at every layer of a torch model.

The words used everywhere: a *layer* is a named point of the network, its activations `(n, d)`; a
*task* one convex problem over them; a *family* the tasks solved together; a *pass* all rows read
once; the *gap* a rigorous bound on `F - F*` in nats; *tol* the stopping rule `gap <= tol * H(Y)`.
"""

from convexprobe.datasets import mnist
from convexprobe.estimate import Estimate, estimate
from convexprobe.extract import extract
from convexprobe.fit import fit_probes
from convexprobe.measures import Score
from convexprobe.plots import plot_errors
from convexprobe.pooling import random_features, random_projection
from convexprobe.probes import PathPoint, Probe, ProbeSet, load_probes
from convexprobe.shards import Shards, open_activations
from convexprobe.solve import Solution, Status
from convexprobe.solvers import (
    LBFGS,
    SAG,
    SAGA,
    SOLVERS,
    SVRG,
    Adam,
    Auto,
    Katyusha,
    NewtonCG,
    RMSprop,
)

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "SAG",
    "SAGA",
    "SOLVERS",
    "SVRG",
    "Adam",
    "Auto",
    "Estimate",
    "Katyusha",
    "NewtonCG",
    "PathPoint",
    "Probe",
    "ProbeSet",
    "RMSprop",
    "Score",
    "Shards",
    "Solution",
    "Status",
    "estimate",
    "extract",
    "fit_probes",
    "load_probes",
    "mnist",
    "open_activations",
    "plot_errors",
    "random_features",
    "random_projection",
]
