"""Problems, discovered by being here: a file with `cases(settings)`, which yields `Case`s."""
