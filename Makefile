# make demo   Bach's chorales -> .bin/.idx -> a small GPT on megatron-core -> new chorales, in demo/
# make test   the whole test suite
# Both set up .venv first, with the versions of constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
# The first Python on PATH that is 3.11 or 3.12; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: demo test clean

demo: $(VENV)/.ready
	$(BIN)/python examples/01_chorales.py demo

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest

# torch first: where its pinned build is at hand, nothing larger is pulled in by the others.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; install one, or run make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[train,corpus,plot]'
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf demo build $(VENV)
