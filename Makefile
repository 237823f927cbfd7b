# `make demo` trains and evaluates the tiny model; `make test` runs every test. Both set themselves up.
PYTHON ?= python3.11
VENV := .venv
RUN := runs/demo
PYTEST := $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile
# The flags of tests/conftest.py but for fusion emitters, which change roundings.
EXACT := --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0
PIP := $(VENV)/bin/pip install --quiet --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(VENV)/bin/python train.py --config configs/bridge_3loop.py:tiny --workdir $(RUN)
	$(VENV)/bin/python eval.py --workdir $(RUN)
	@echo "metrics:    $(RUN)/metrics.jsonl"
	@echo "checkpoint: $(RUN)/checkpoints"

test: $(VENV)/.installed-test lint
	$(PYTEST)
	XLA_FLAGS="$(EXACT)" $(PYTEST) -m exact

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs
