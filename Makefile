# make demo: sets up and runs the main job on real data; make test: sets up and runs the tests.
# A small CPU build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TORCH_INDEX ?=
OUT := demo
RUN := --dataset mnist5k --output_dir $(OUT)/runs --resume

.PHONY: demo test clean

# The pip of the new environment; torch and torchvision from one index, so that they fit each other.
$(VENV)/%: requirements-%.txt requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch'>=2.4' torchvision'>=0.19'
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-$*.txt
	touch $@

demo: $(VENV)/demo
	$(PY) teacher-train.py $(RUN)
	$(PY) DFND-train.py $(RUN)
	$(PY) DFND-train.py $(RUN) --select random
	$(PY) DAFL-train.py $(RUN) --epochs 2 --batch_size 128
	$(PY) report.py --runs $(OUT)/runs --out $(OUT)

test: $(VENV)/test
	$(PY) -m ruff check .
	$(PY) report.py --check
	$(PY) -m pytest

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .ruff_cache
