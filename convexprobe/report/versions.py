"""Which software made a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("numpy", "scipy", "torch", "scikit-learn", "safetensors")


def versions() -> dict[str, str]:
    """The versions of convexprobe, Python, the libraries that compute, and the machine's kind."""
    from convexprobe import __version__  # here: the package has it once its folders are imported

    found = {"convexprobe": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build of the system's, without metadata
            continue
    return {**found, "platform": f"{platform.system()} {platform.machine()}"}
