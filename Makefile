# make demo: sets up and runs the main job on real data; make test: sets up and runs the tests.
# A small CPU build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TORCH_INDEX ?=
OUT := demo

PIP := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test faults bench bench-scale clean

# A stamp for each requirements file that the environment holds. torch and torchvision come from one index, so that they fit.
$(VENV)/%: requirements-%.txt requirements.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) -c requirements.txt torch torchvision)
	$(PIP) -r requirements.txt -r requirements-$*.txt
	touch $@

demo: $(VENV)/demo
	$(PY) reproduce.py table1 --dataset mnist5k --scale demo --output_dir $(OUT)/runs
	$(PY) report.py --runs $(OUT)/runs/mnist5k-demo --out $(OUT)
	$(PY) report.py --runs $(OUT)/runs/mnist5k-demo --out $(OUT) --html

test: $(VENV)/test
	$(PY) -m ruff check .
	$(PY) report.py --check
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# every fault in full, and the table of docs/reliability.md
faults: $(VENV)/test
	FAULTS=tests/faults/tried.jsonl $(PY) -m pytest -n 2 --dist loadfile -m '' tests/faults
	$(PY) report.py --readme docs/reliability.md

# flags: make bench BENCH_FLAGS='--photos DIR --check'
bench: $(VENV)/demo
	$(PY) -m bench.speed $(BENCH_FLAGS)

# the rows about scale: make bench-scale BENCH_FLAGS=--check
bench-scale: $(VENV)/demo
	$(PY) -m bench.scale $(BENCH_FLAGS)

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .ruff_cache
