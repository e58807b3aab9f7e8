"""Competitors, discovered by being here: a file with `COMPETITORS`, a `Competitor` by name."""
