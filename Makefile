# Every target makes .venv by itself where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: study test lint bench bench-search bench-retention soak clean

$(VENV)/.runtime: pyproject.toml constraints.txt
	@echo "Installing qa_hpo into $(VENV) (a minute or two) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@echo "Installing qa_hpo and what its tests need into $(VENV) (a minute or two) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.runtime

## study: the main job on generated data, from search to an exported model that answers questions
study: $(VENV)/.runtime
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/study.sh

## test: lint, types, import directions and every test
test: $(VENV)/.dev lint
	@sh scripts/chromium.sh
	@$(BIN)/python scripts/real_data_note.py
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

## lint: ruff, mypy and import-linter
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## bench: how fast it is, beside a notebook and Trainer.hyperparameter_search (takes about two hours on a CPU)
bench: $(VENV)/.dev
	$(BIN)/python -m bench

## soak: workers killed and databases stopped under a study, and hostile input; half an hour
soak: $(VENV)/.dev
	$(BIN)/python -m bench soak hostile

## bench-search: search strategies beside each other, replayed on recorded learning curves
bench-search: $(VENV)/.dev
	$(BIN)/python -m bench search

## bench-retention: what each retention method keeps of an old task, and what it costs
bench-retention: $(VENV)/.dev
	$(BIN)/python -m bench retention

## clean: remove the virtual environment and tools' caches; storage/ stays
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
