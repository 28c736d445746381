# Two commands do everything on a fresh machine: `make reproduce` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# extra words for the installation of torch, for example an index that has CPU-only builds
PIP_TORCH ?=

.DEFAULT_GOAL := help
.PHONY: help setup reproduce check check-thorough claims-page test test-quick test-thorough test-trl test-verl benchmark-peers faults mutants test-wheel lint figures update-figures update-sweeps update-comparison update-language clean

help:
	@echo "make reproduce       set up, then the main job (about 7 minutes on 2 cores): runs/reproduce/report.html"
	@echo "make test            set up, then the tests (about 10 minutes on 2 cores)"
	@echo "make check           the theory check alone; check-thorough: with 100,000,000 instances; claims-page: docs/claims.md"
	@echo "make figures         redraw figures/ from the committed data"
	@echo "make update-figures  copy the data of runs/reproduce into the repository and redraw docs/figures"
	@echo "make update-sweeps   run the sweeps that have figures (about 5 minutes on 2 cores) and do the same with their data"
	@echo "make update-comparison  every control in every world, side by side (about 50 minutes on 2 cores), and its figure"
	@echo "make update-language the deceptive language task under all controls and the probe of the tiny model (about 50 minutes)"
	@echo "make test-trl        TRL's own functions on the golden batches, in an environment of its own; test-verl: verl's"
	@echo "make benchmark-peers PureJaxRL's environment for benchmarks/cartpole_ppo.py"
	@echo "make mutants         mutation testing of the core, hours; or of MODULES=\"loss surrogate\", minutes each"
	@echo "make test-quick | test-thorough | test-wheel | faults | lint | setup | clean"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("entropy-theory needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_TORCH) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

reproduce: setup
	$(BIN)/entropy-theory reproduce

check: setup
	$(BIN)/entropy-theory check

# every claim at full size, Lemma 1 on 100,000,000 instances; resumes after a kill
check-thorough: setup
	$(BIN)/entropy-theory check --profile thorough --certified

# the page of all claims in docs
claims-page: setup
	$(BIN)/entropy-theory check --certified --report docs/claims.md

test: setup
	$(BIN)/python -m pytest -n 2

test-quick: setup
	HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -n 2

test-thorough: setup
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n 2

# other trainers' functions on the golden batches (docs/conformance.md); nothing else needs these environments
.venv-trl/.installed .venv-verl/.installed: .venv-%/.installed: pyproject.toml tests/peers/constraints-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet $(PIP_TORCH) "$$(grep '^torch==' tests/peers/constraints-$*.txt)"
	.venv-$*/bin/python -m pip install --quiet --constraint tests/peers/constraints-$*.txt --editable '.[test,$*]'
	@touch $@

# the trainers warn while they are imported
test-trl: .venv-trl/.installed
	.venv-trl/bin/python -m pytest -W default tests/peers/test_trl.py tests/peers/test_trl_controls.py

test-verl: .venv-verl/.installed
	.venv-verl/bin/python -m pytest -W default tests/peers/test_verl.py tests/peers/test_verl_controls.py

# what benchmarks/cartpole_ppo.py is compared with; gymnax imports six without asking for it
benchmark-peers: .venv-benchmarks/.installed

.venv-benchmarks/.installed: benchmarks/peers/constraints.txt
	$(PYTHON) -m venv .venv-benchmarks
	.venv-benchmarks/bin/python -m pip install --quiet --constraint $< jax flax optax gymnax six
	@touch $@

faults: setup
	$(BIN)/python tests/plant_faults.py

# MODULES names files of entropy_theory; all those of tests/mutate.py if it is empty (docs/mutants.md)
MODULES ?=
mutants: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	nice -n 10 $(BIN)/python tests/mutate.py $(MODULES)

# the wheel in an environment of its own, outside the checkout
test-wheel: setup
	rm -rf build dist/wheel && $(BIN)/python -m build --quiet --wheel --outdir dist/wheel
	rm -rf dist/venv && $(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet $(PIP_TORCH) "$$(grep '^torch==' constraints.txt)"
	dist/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/wheel/*.whl
	rm -rf dist/elsewhere && mkdir dist/elsewhere
	cd dist/elsewhere && ../venv/bin/entropy-theory check && ../venv/bin/entropy-theory reproduce

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

figures: setup
	$(BIN)/python -m paper_figs paper_figs/data figures

update-figures: setup
	mkdir -p paper_figs/data
	cp runs/reproduce/data/*.csv paper_figs/data/
	$(BIN)/python -m paper_figs paper_figs/data docs/figures

# the sweeps that have a figure of their own, the tables that these are drawn from, and the figures; resumes after a kill
SWEEPS := entropy_collapse prediction_error rare_good_arm cartpole_kernel deceptive_controls
SWEEP_TABLES := entropy_collapse_curves prediction_error_summary rare_good_arm_curves cartpole_kernel_seeds \
    deceptive_controls_curves deceptive_controls_summary deceptive_controls_profiles
update-sweeps: setup
	for sweep in $(SWEEPS); do $(BIN)/entropy-theory ablate $$sweep || exit 1; done
	for table in $(SWEEP_TABLES); do cp runs/ablate/$${table%_*}/data/$$table.csv paper_figs/data/ || exit 1; done
	$(BIN)/python -m paper_figs paper_figs/data docs/figures

# every control in every world, side by side (about 50 minutes on 2 cores); resumes after a kill
update-comparison: setup
	$(BIN)/entropy-theory ablate controls
	cp runs/ablate/controls/data/*.csv paper_figs/data/
	$(BIN)/python -m paper_figs paper_figs/data docs/figures

# the language model where collapse costs reward, all controls, and the tiny model's updates probed (about 50 minutes on
# 2 cores), their tables and figures; resumes after a kill
update-language: setup
	$(BIN)/entropy-theory ablate deceptive_llm
	cp runs/ablate/deceptive_llm/data/deceptive_llm_summary.csv runs/ablate/deceptive_llm/data/deceptive_llm_curves.csv paper_figs/data/
	$(BIN)/entropy-theory ablate tiny_qwen
	$(BIN)/python -c "from pathlib import Path; from entropy_theory.cli.llm_evidence import write_tables; print(write_tables(Path('runs/ablate/tiny_qwen'), Path('paper_figs/data')))"
	$(BIN)/python -m paper_figs paper_figs/data docs/figures

clean:
	rm -rf $(VENV) .venv-trl .venv-verl .venv-benchmarks build dist *.egg-info figures .pytest_cache .ruff_cache .hypothesis
