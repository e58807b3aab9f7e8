PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: demo test lint gpu docs dist clean

demo: $(VENV)/.installed
	$(BIN)/python examples/digits.py --out out

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu:  # installs nothing: a machine with a GPU may have no network, and has a torch of its own
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --out out

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict  # a broken link fails; the site is in out/site

# Run with the wheel's Python, away from the repository; the arguments are the package's files.
define SMOKE
import importlib, sys
from importlib.metadata import version
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import convexprobe as cxp
from convexprobe.cli.main import main as cli

site = Path(cxp.__file__).parent.parent
assert site.is_relative_to(sys.prefix), f"expected the installed package, found {site}"
missing = [file for file in sys.argv[1:] if not (site / file).is_file()]
assert not missing, f"not in the wheel: {missing}"
assert "convexprobe/py.typed" in sys.argv, f"no py.typed among {sys.argv[1:]}"
packages = [Path(f).parent for f in sys.argv[1:] if f.endswith("__init__.py")]
for package in packages:
    importlib.import_module(".".join(package.parts))
assert version("convexprobe") == cxp.__version__, (version("convexprobe"), cxp.__version__)

x, y = load_digits(return_X_y=True)
probe = cxp.fit_probes({"pixels": torch.tensor(x / 16)}, torch.tensor(y))["pixels"]
assert probe.status is cxp.Status.CERTIFIED, probe.status
assert cli(["--version"]) == 0
cxp.write_report(cxp.ProbeSet({"pixels": probe}), "report.html")  # of page.css and page.js
print(f"convexprobe {cxp.__version__}: {len(sys.argv) - 1} files, {len(packages)} packages")
print(f"a probe on the digits, gap {probe.gap:.1e} nats, {probe.status.value}")
endef
export SMOKE

dist: $(VENV)/.installed
	rm -rf build dist convexprobe.egg-info  # its old file list would end in the wheel
	$(BIN)/python -m build --outdir dist
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python -m venv "$$folder/venv" && \
	"$$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl && \
	files=$$(find convexprobe -name '*.py' -o -name py.typed -o -name 'page.*') && \
	cd "$$folder" && venv/bin/python -I -c "$$SMOKE" $$files

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "convexprobe needs Python 3.11 or newer, found %d.%d; try make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) out build dist convexprobe.egg-info
