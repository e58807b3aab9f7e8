"""What is measured of a probe on labelled rows."""
