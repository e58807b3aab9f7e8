"""The rows `(n, d)` of a layer, wherever they are kept: in memory, on disk or streamed."""
