# Every target makes .venv by itself where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Its theme would tell at length, with each build, of its successor.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: study test test-wheel test-lowest lint docs docs-serve bench bench-search bench-retention soak clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

## test-wheel: the wheel in an environment of its own, without extras, and a small study with it
test-wheel:
	@rm -rf build/wheel build/venv-wheel
	$(PYTHON) -m venv build/venv-wheel
	build/venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	build/venv-wheel/bin/python -m pip install --quiet -c constraints.txt build/wheel/*.whl
	sh scripts/small_study.sh build/venv-wheel/bin

# Quick, and of every room; what was added to a package since its lowest version shows there.
# Left out: with the lowest transformers, windows are cut by the tokenizer alone, right but slower.
# Warnings are no errors there: old packages call what new ones have deprecated.
LOWEST := tests/squad tests/demo/test_write_demo.py tests/finetune/test_run.py \
	tests/finetune/test_models.py tests/finetune/test_evaluation.py tests/finetune/test_starts.py \
	tests/finetune/retention tests/search/test_study.py tests/search/test_budget.py \
	tests/search/test_pruning.py tests/search/test_sampling.py tests/search/test_space.py \
	tests/results/test_leaderboard.py tests/results/test_plots.py tests/test_config.py tests/test_cli.py

## test-lowest: tests and a small study with the lowest versions that pyproject.toml declares
test-lowest:
	@rm -rf build/venv-lowest
	$(PYTHON) -m venv build/venv-lowest
	build/venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt \
		. pytest pytest-timeout hypothesis
	build/venv-lowest/bin/python -m pytest -q -p no:cacheprovider -W ignore -o filterwarnings=default -k "not postgres" \
		--deselect tests/squad/test_windows.py::test_the_fast_way_is_the_usual_one $(LOWEST)
	sh scripts/small_study.sh build/venv-lowest/bin

## lint: ruff, mypy and import-linter
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## docs: the documentation, as pages in site/
docs: $(VENV)/.dev
	$(MKDOCS) build

## docs-serve: the documentation in a browser, made anew whenever a file of it changes
docs-serve: $(VENV)/.dev
	$(MKDOCS) serve

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
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
