"""The command `python -m benchmarks.regimes`."""

from benchmarks.regimes.run import main

main()
