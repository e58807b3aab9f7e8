"""Where users are: CPU seconds of one thread by regime, ours certified, everybody else's true.

    python -m benchmarks.regimes --out out [--quick] [--only a d] [--before earlier/regimes.csv]

Six regimes: (a) rows like residual streams, (b) tokens and sentences of a real BERT, (c) MNIST
layers with small penalties, (d) many classes, (e) scikit-learn's toy data, (f) the default job
with its choice of penalty. A case is one data set and penalty; penalties are in units of the mean
feature variance, in (e) in scikit-learn's own.

Ours is `fit_probes(x, y, l2=l2, tol=1e-3)`, which ends when the gap is certified to be at most
1e-3 H(Y). Each peer is called as its users call it, at the loosest setting of its own stopping rule
whose coefficients are truly within 1e-3 H(Y) of the optimum, by our float64 evaluation. The search
for that setting costs the peer nothing. The optimum is the value of a float64 fit certified to
1e-5, so a peer is never asked for more than it needs. Of the peers, those which took more than
twice the best one's time in the search are not timed again. Times are medians of three runs (of
means of ten, where a run takes less than 20 ms), taken in turn.

It works case by case and can be stopped at any time: the same command goes on where it was.
"""
