"""Benchmarks. Files here and some folders are commands: `python -m benchmarks.NAME`.

run, report: every peer on every problem, and the page and tables made from the results.
families: many concepts and a path of penalties, against loops over scikit-learn.
sweep: probes at every checkpoint of a training, against loops over scikit-learn.
streaming: activations larger than memory. precision: float64 to bfloat16 activations.
scale: the size of ImageNet. gpu: all that a machine with a GPU can tell, in ten minutes.
future_work: SAG and SVRG, which the paper meant to try.

peers/ holds the solvers compared by `run`, one file each; problems/ what they solve; harness/ what
the commands share: cases, clock, results table, summary, figures.
"""
