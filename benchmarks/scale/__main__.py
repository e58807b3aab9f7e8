"""The command `python -m benchmarks.scale`."""

from benchmarks.scale.imagenet import main

main()
