"""One HTML file that shows probes or a training run to a person."""
