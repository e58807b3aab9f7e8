"""A small set of probes that differ in what they have."""

from __future__ import annotations

from convexprobe import ProbeSet, fit_probes
from tests.oracle import random_data

DATA = random_data(200, 6, 3)


def small_set() -> ProbeSet:
    layers = {"conv1": DATA.x, "block.2/fc": DATA.x[:, :4], "out": 3 * DATA.x}
    probes = fit_probes(layers, DATA.y, l2=[1e-3, 1e-1], validation=(layers, DATA.y))
    return probes | fit_probes({"plain": DATA.x}, DATA.y, l2=0.1, max_passes=0)
