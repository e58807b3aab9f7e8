"""The paper's future work, answered: SAG, SVRG and their rivals, cold and warm, on four problems.

    python -m benchmarks.future_work --out out

problems: the layers, each at two consecutive checkpoints. language: the one from a BERT.
methods: the solvers and how a run is recorded. report: tables and arithmetic. figure: the picture.
"""
