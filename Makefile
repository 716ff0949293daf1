# make demo    set everything up and run the demo
# make test    set everything up and run the tests
# make check   format, lint, types, import contract, tests: what CI runs
# make lowest  run the tests in .venv-lowest with the oldest versions that are allowed
# make docs    build the documentation into site/, strictly
# make venv    only set up

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := demo,parquet,efficientnet-lite0,efficientnet-lite1,efficientnet-lite2,onnx,serve,sweep,tensorboard

.PHONY: venv demo test check lint slow lowest docs clean

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[$(EXTRAS),wandb,mlflow]' --group dev --group docs
	touch .venv/ready

demo: venv
	$(BIN)/liftplus demo

test: venv
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

slow: venv
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lowest: .venv-lowest/ready
	.venv-lowest/bin/python -m pytest -n 2 --dist worksteal -m 'not slow' -W ignore

.venv-lowest/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[$(EXTRAS)]' --group dev
	touch .venv-lowest/ready

lint: venv
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variable silences an advertisement of the theme's, not a warning about this site.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint test docs

clean:
	rm -rf .venv .venv-lowest site .pytest_cache .mypy_cache .ruff_cache runs
