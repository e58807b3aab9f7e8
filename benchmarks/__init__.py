"""The benchmark: every solver and its peers on one objective, see `benchmarks.run`."""
