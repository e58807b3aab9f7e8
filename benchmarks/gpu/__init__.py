"""For a machine with a GPU: `python -m benchmarks.gpu`, see `benchmarks.gpu.command`."""
