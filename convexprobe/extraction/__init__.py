"""A frozen model in, the activations of its layers out."""
