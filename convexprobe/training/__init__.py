"""Probes at every checkpoint of a training run."""
