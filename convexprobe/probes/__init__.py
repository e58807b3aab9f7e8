"""Activations and labels in, certified probes out."""
