# Each target sets itself up: a virtual environment in .venv, what it needs from the package index, and the build.
# Needed beforehand: Python 3.10 or later (with venv), Rust 1.89 or later, make.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
RUST := Cargo.toml Cargo.lock $(shell find src -name '*.rs')

.PHONY: demo examples bridge test bench docs build clean

demo: build $(BIN)/.demo ## Train a convolutional network on handwritten digits with the whole recipe; a report in demo/
	$(BIN)/python -m ironstep demo --out demo

examples: build $(BIN)/.demo ## Every optimiser; with and without each layer and augmentation; fine-tuning: tables and pictures in demo/
	$(BIN)/python examples/digits.py
	$(BIN)/python examples/network.py
	$(BIN)/python examples/augment.py
	$(BIN)/python examples/finetune.py

bridge: build $(BIN)/.torch ## A loop in torch with its AdamW and with ours; brings torch
	$(BIN)/python examples/bridge.py

test: build $(BIN)/.dev ## All checks: linters, Rust tests, Python tests, stubs, docs; ends in a count
	$(BIN)/python tests/run.py

bench: build $(BIN)/.bench ## Speed, beside every installed peer; nothing else should run meanwhile
	cargo bench --no-default-features --bench kernels
	$(BIN)/python benches/peers.py
	$(BIN)/python benches/layers.py
	$(BIN)/python benches/loop.py
	$(BIN)/python benches/bridge.py
	$(BIN)/python benches/augment.py

docs: build $(BIN)/.dev ## The documentation, in docs/_build/index.html
	$(BIN)/sphinx-build -q -W -b html docs docs/_build
	@echo docs/_build/index.html

build: $(BIN)/.built ## The package in .venv, editable

$(BIN)/.uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(UV) 'maturin>=1.9.4,<2'
	touch $@

$(BIN)/.built: $(BIN)/.uv $(RUST) pyproject.toml
	. $(BIN)/activate && maturin develop --release --uv
	touch $@

$(BIN)/.demo: $(BIN)/.uv pyproject.toml
	$(UV) 'scikit-learn>=1.5' 'matplotlib>=3.9' 'tqdm>=4.66'
	touch $@

$(BIN)/.torch: $(BIN)/.uv pyproject.toml
	$(UV) 'torch>=2.6'
	touch $@

$(BIN)/.dev: $(BIN)/.uv pyproject.toml
	$(UV) --group check
	touch $@

$(BIN)/.bench: $(BIN)/.uv pyproject.toml
	$(UV) --group bench
	touch $@

clean: ## Everything that was built
	cargo clean
	rm -rf .venv docs/_build demo bench
