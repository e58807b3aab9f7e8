"""Linear classifier probes, certified optimal, at every layer of a torch model.

The words used everywhere: a *layer* is a named point of the network, its activations `(n, d)`; a
*task* one convex problem over them; a *family* the tasks solved together; a *pass* all rows read
once; the *gap* a rigorous bound on `F - F*` in nats; *tol* the stopping rule `gap <= tol * H(Y)`.
"""

from convexprobe.datasets import mnist
from convexprobe.extract import extract
from convexprobe.fit import fit_probes
from convexprobe.history import ProbeHistory, load_history
from convexprobe.integrations import hugging_face_callback, lightning_callback
from convexprobe.measures import Score
from convexprobe.monitor import ProbeMonitor
from convexprobe.plots import plot_errors
from convexprobe.pooling import random_features, random_projection
from convexprobe.probes import PathPoint, Probe, ProbeSet, load_probes
from convexprobe.remembered import Remembered, remember
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
from convexprobe.sweep import probe_checkpoints

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "SAG",
    "SAGA",
    "SOLVERS",
    "SVRG",
    "Adam",
    "Auto",
    "Katyusha",
    "NewtonCG",
    "PathPoint",
    "Probe",
    "ProbeHistory",
    "ProbeMonitor",
    "ProbeSet",
    "RMSprop",
    "Remembered",
    "Score",
    "Solution",
    "Status",
    "extract",
    "fit_probes",
    "hugging_face_callback",
    "lightning_callback",
    "load_history",
    "load_probes",
    "mnist",
    "plot_errors",
    "probe_checkpoints",
    "random_features",
    "random_projection",
    "remember",
]
