# Every target makes the environment it needs. Start with `make quick`.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)

.PHONY: env quick paper best ship record record-best test packages lint docs report clean

env: .venv/ready

# torch comes first and alone: on Linux its default build brings CUDA, a CPU build already here is kept.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

quick: env
	$(SNAKEMAKE) --configfile config/quick.yaml

paper: env
	$(SNAKEMAKE) --configfile config/config.yaml

best: env
	$(SNAKEMAKE) --configfile config/best.yaml

ship: env
	$(BIN)/dklfm stage ship results/best/model/transcription_genes_stream_seed0-* src/dklfm/weights/transcription
	$(BIN)/dklfm stage ship results/best/model/lotka_volterra_free_stream_seed0-* src/dklfm/weights/lotka_volterra
	$(BIN)/dklfm stage ship results/best/model/reaction_diffusion_best_stream_seed0-* src/dklfm/weights/reaction_diffusion

record: env
	$(BIN)/dklfm stage record config/config.yaml docs/paper

record-best: env
	$(BIN)/dklfm stage record config/best.yaml docs/best

report: env
	$(SNAKEMAKE) --configfile config/quick.yaml --report results/quick/report.html

test: env
	$(BIN)/python -m pytest -n $(CORES) --no-loadscope-reorder

# A scheduler and a browser, which some tests start; as root, on Debian. Without them these are skipped.
packages:
	apt-get update -qq
	apt-get install -qq --no-install-recommends slurm-wlm munge chromium chromium-driver

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint --configfile config/quick.yaml

docs: env
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

clean:
	rm -rf .venv results .snakemake docs/_build
