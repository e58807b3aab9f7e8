"""Linear classifier probes, certified optimal, at every layer of a torch model.

The words used everywhere: a *layer* is a named point of the network, its activations `(n, d)`; a
*task* one convex problem over them; a *family* the tasks solved together; a *pass* all rows read
once; the *gap* a rigorous bound on `F - F*` in nats; *tol* the stopping rule `gap <= tol * H(Y)`.
"""

from convexprobe import solvers
from convexprobe.activations.directory import DirectoryRows, open_activations
from convexprobe.activations.layers import Activations
from convexprobe.arrays.shards import shard
from convexprobe.datasets.mnist import mnist
from convexprobe.extraction.extract import extract
from convexprobe.extraction.pools import random_features, random_projection, token_at
from convexprobe.extraction.words import token_labels, word_ids
from convexprobe.metrics.score import Score
from convexprobe.plotting.figures import plot_errors
from convexprobe.probes.control import control_labels
from convexprobe.probes.cost import Estimate, estimate
from convexprobe.probes.description_length import DescriptionLength, description_length
from convexprobe.probes.fit import fit_probes
from convexprobe.probes.probe import PathPoint, Probe
from convexprobe.probes.probe_set import ProbeSet, load_probes
from convexprobe.probes.scores import Scores
from convexprobe.probes.warm_start import Remembered, remember
from convexprobe.report.report import write_report
from convexprobe.solvers import (
    LBFGS,
    SAG,
    SAGA,
    SOLVERS,
    SVRG,
    Adam,
    Katyusha,
    NewtonCG,
    NewtonCholesky,
    RMSprop,
)
from convexprobe.solvers.solution import Solution, Status
from convexprobe.training.callbacks import hugging_face_callback, lightning_callback
from convexprobe.training.history import ProbeHistory, load_history
from convexprobe.training.monitor import ProbeMonitor
from convexprobe.training.sweep import probe_checkpoints

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "SAG",
    "SAGA",
    "SOLVERS",
    "SVRG",
    "Activations",
    "Adam",
    "DescriptionLength",
    "DirectoryRows",
    "Estimate",
    "Katyusha",
    "NewtonCG",
    "NewtonCholesky",
    "PathPoint",
    "Probe",
    "ProbeHistory",
    "ProbeMonitor",
    "ProbeSet",
    "RMSprop",
    "Remembered",
    "Score",
    "Scores",
    "Solution",
    "Status",
    "control_labels",
    "description_length",
    "estimate",
    "extract",
    "fit_probes",
    "hugging_face_callback",
    "lightning_callback",
    "load_history",
    "load_probes",
    "mnist",
    "open_activations",
    "plot_errors",
    "probe_checkpoints",
    "random_features",
    "random_projection",
    "remember",
    "shard",
    "solvers",
    "token_at",
    "token_labels",
    "word_ids",
    "write_report",
]


def __dir__() -> list[str]:
    """The public names; the folders are found by their own."""
    return [*__all__, "__version__"]
