# make demo   Bach's chorales -> .bin/.idx -> a small GPT on megatron-core -> new chorales and a page to hear them, in demo/
#             shorter: make demo DEMO_OPTIONS="--num 2 train.train_iters=20"
# make demo-audio   the same chorales rendered with captions -> latents -> both stages of text to music -> audio, in demo-audio/
# make test   the whole test suite but the exhaustive products, in TEST_PROCESSES=2 processes; make test-all   those, too
# Each sets up .venv first, with the versions of constraints.txt.
# make test-extras   each extra alone in an environment of its own, from the wheel, does what docs/install.md says of it
# make clean   removes the environments and build products, never music or models; make clean-demo removes demo/ and demo-audio/
# make test-slurm   the job scripts of launch/ on real Slurm daemons; as root, it installs slurm-wlm and munge with apt
# make test-latest   megatron-core 0.19 and the hosts (Megatron-Bridge, NeMo, NeMo-Run), on Python 3.12 in .venv-latest
# make test-image   megatron-core 0.18 and numpy 1.26, as in NVIDIA's default image, on Python 3.12 in .venv-image
# make lint   format and common faults (ruff), imports, the frozen surface and the pages; known vulnerabilities of the pinned versions (pip-audit), where an index tells
# make sbom   sbom.json, the software bill of materials of the test environment, in CycloneDX's JSON
# make fuzz   20,000 damaged and hostile inputs of each format, at most 120 s each: within an hour; FUZZ_OPTIONS="--formats midi,idx"

VENV := .venv
BIN := $(VENV)/bin
# The first Python on PATH that is 3.11 or 3.12; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && echo $$p && break; done)

LATEST := .venv-latest
IMAGE := .venv-image
LINT := .venv-lint
PYTHON312 ?= $(shell python3.12 -c "" >/dev/null 2>&1 && echo python3.12)

.PHONY: demo demo-audio test test-all test-extras test-slurm test-latest test-image lint sbom fuzz clean clean-demo
DEMO_OPTIONS ?=
FUZZ_OPTIONS ?=
TEST_PROCESSES ?= 2

demo: $(VENV)/.ready
	$(BIN)/megatron-music demo -o demo $(DEMO_OPTIONS)

demo-audio: $(VENV)/.ready-audio
	$(BIN)/python examples/03_words_to_music.py demo-audio

test-extras:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; install one, or run make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) tests/extras.py

# Each file's tests stay in one process, for what they share.
IN_PARALLEL = $(if $(filter-out 1,$(TEST_PROCESSES)),-n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder)

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-all: $(VENV)/.ready-test
	$(BIN)/python -m pytest $(IN_PARALLEL) -m ""

lint: $(VENV)/.ready-test $(LINT)/.ready
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/ruff check .
	$(BIN)/python -m pytest tests/test_layers.py tests/cli/test_surface.py tests/test_docs.py
	$(LINT)/bin/python tests/audit.py constraints.txt

sbom: $(VENV)/.ready-test $(LINT)/.ready
	$(LINT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON -o sbom.json $(BIN)/python

fuzz: $(VENV)/.ready-test
	$(BIN)/python benchmarks/fuzz_readers.py $(FUZZ_OPTIONS)

$(LINT)/.ready: constraints-lint.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; install one, or run make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python -m pip install --disable-pip-version-check -r constraints-lint.txt
	touch $@

# torch first: where its pinned build is at hand, nothing larger is pulled in by the others.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; install one, or run make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.ready-audio: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[audio]'
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# Debian's Slurm, started by the tests on loopback addresses and ended by them. A skip is said aloud.
HAS_SLURM = [ "$$(id -u)" = 0 ] && command -v slurmctld && command -v munged && unshare --mount --uts true
APT_SLURM = apt-get install -y --no-install-recommends slurm-wlm munge

test-slurm: $(VENV)/.ready-test
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { $(HAS_SLURM); } >/dev/null 2>&1; then \
		{ $(APT_SLURM) || { apt-get update && $(APT_SLURM); }; } >/dev/null 2>&1; fi || true
	@if { $(HAS_SLURM); } >/dev/null 2>&1; then $(BIN)/python -m pytest tests/slurm; else \
		echo "SKIPPED: make test-slurm needs root, namespaces, slurm-wlm and munge; no job script was run on Slurm"; fi

test-latest: $(LATEST)/.ready
	$(LATEST)/bin/python tests/lanes.py latest

test-image: $(IMAGE)/.ready
	$(IMAGE)/bin/python tests/lanes.py image

$(IMAGE)/.ready: pyproject.toml constraints-image.txt
	@test -n "$(PYTHON312)" || { echo "test-image needs Python 3.12, as NVIDIA's image has it, and there is no python3.12 on PATH; install one, or run make test-image PYTHON312=/path/to/python3.12"; exit 1; }
	$(PYTHON312) -m venv $(IMAGE)
	$(IMAGE)/bin/python -m pip install --disable-pip-version-check --no-deps -r constraints-image.txt -e .
	touch $@

# Megatron-Bridge without its dependencies: Transformer Engine, mamba and their like build on machines with CUDA alone.
# NeMo-Run after NeMo: they ask for different urllib3, and run with the older one.
# megatron-energon for the names that Bridge's configuration imports.
$(LATEST)/.ready: pyproject.toml constraints-latest.txt
	@test -n "$(PYTHON312)" || { echo "test-latest needs Python 3.12, which megatron-core 0.19 and Megatron-Bridge demand, and there is no python3.12 on PATH; install one, or run make test-latest PYTHON312=/path/to/python3.12"; exit 1; }
	$(PYTHON312) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --disable-pip-version-check -c constraints-latest.txt torch
	$(LATEST)/bin/python -m pip install --disable-pip-version-check -c constraints-latest.txt -e '.[train,test,nemo]' \
		lhotse kaldialign librosa soundfile braceexpand sacrebleu whisper_normalizer \
		filetype multi-storage-client rapidyaml mfusepy sentencepiece tiktoken
	$(LATEST)/bin/python -m pip install --disable-pip-version-check -c constraints-latest.txt -e '.[nemo-run]'
	$(LATEST)/bin/python -m pip install --disable-pip-version-check --no-deps -c constraints-latest.txt \
		megatron-bridge megatron-energon
	touch $@

clean:
	rm -rf build dist megatron_music.egg-info sbom.json $(VENV) $(LATEST) $(IMAGE) $(LINT)

clean-demo:
	rm -rf demo demo-audio
