"""The command `convexprobe`: files and factories in, probes, tables and reports out."""
