PYTHON ?= .venv/bin/python

.PHONY: check test slow format

check: ## lint and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: ## what CI runs
	$(PYTHON) -m pytest

slow: ## the tests that take minutes
	$(PYTHON) -m pytest -m slow

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
