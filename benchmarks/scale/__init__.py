"""The size of ImageNet: `python -m benchmarks.scale`, see `benchmarks.scale.imagenet`."""
