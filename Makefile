# make report   derive, predict, measure, train and judge; writes report/index.html
# make test     the whole test suite
# Both set up everything themselves: a virtual environment in .venv, installed once and reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: report test coverage lint benchmark clean
.DELETE_ON_ERROR:

report: $(READY)
	$(BIN)/python -m verify report $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# lines and branches of theory/ that its own tests never reach
coverage: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term $(ARGS) tests/theory

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

benchmark: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: spikeless needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) report
