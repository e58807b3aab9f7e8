"""The figures and the movie."""
