#: make dev     a .venv with ds4kv installed in editable form, all tools, and the hooks of git; once, and after
#:              a change in pyproject.toml or setup.py
#: make test    the fast tests; `make test T=store`: of tests/test_store*.py, `make test ROOM=stream`: of one room
#: make engines PyTorch, transformers and llama.cpp into .venv, 1.6 GB: without them tests/engines is skipped
#: make check   what must be green before a commit: linters, types, the C core's tests, all tests
#: make bench   every benchmark on little; bench/README.md says how to measure
#: make docs    the docs site, in build/docs
#: make clean   removes what was built, but .venv
#:
#: C that has changed is compiled by itself before tests run. CONTRIBUTING.md says the rest.

PYTHON = python3
BIN    = .venv/bin
BUILT  = build/in-place
C      = $(wildcard csrc/*.[ch])

# Which tests look at which room. tests/test_hygiene.py wants each of them here once.
core   = arguments buffers c_api c_files cancel forks memory signals
format = arrays format_md golden header layouts mutations packed packed_damage strict trailer
stream = checked fileobj parts pieces stream stream_files
file   = checkpoint draft integrity ledger lock notes rewrite salvage sealed verdicts
store  = background identity index load_async log nearest policy quarantine sessions settings store store_crash store_model store_processes store_room \
         store_trouble upgrade watch
engines = llama_cpp llama_model llama_session transformers
cli    = cli cli_changes cli_store cli_streams synthetic
house  = docs exports house hygiene packaging readme
ROOMS  = core format stream file store engines cli house

ifdef ROOM
TESTS := $(if $(filter $(ROOM),$(ROOMS)),$(wildcard $(foreach name,$($(ROOM)),tests/test_$(name).py tests/engines/test_$(name).py)),$(error ROOM is one of $(ROOMS)))
endif
ifdef T
TESTS := $(or $(wildcard tests/test_$(T)*.py tests/engines/test_$(T)*.py),$(error there is no test_$(T)*.py))
endif

.PHONY: help dev editable test engines check bench docs clean

help:
	@sed -n 's/^#: \{0,1\}//p' Makefile

dev:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[bench,cli,dev,docs,test]'
	@mkdir -p build && touch $(BUILT)
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/pre-commit install; fi

# `pip install .` puts a copy there, which would be tested instead of what was just edited.
editable:
	@ls .venv/lib/python*/site-packages/__editable__.ds4kv-*.pth >/dev/null 2>&1 || \
	    { echo 'no editable ds4kv in .venv: run make dev' >&2; exit 1; }

$(BUILT): $(C) csrc/build_ffi.py setup.py | editable
	$(BIN)/python setup.py --quiet build_ext --inplace
	@mkdir -p $(@D) && touch $@

test: editable $(BUILT)
	$(BIN)/pytest -n auto -m "not slow" $(TESTS)

engines: editable
	bash tests/engines/setup.sh .venv

check: editable $(BUILT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict ds4kv
	$(BIN)/clang-format --dry-run -Werror csrc/*.[ch] csrc/tests/*.[ch] csrc/fuzz/*.c
	$(MAKE) -C csrc check
	$(BIN)/pytest -n auto

bench: editable $(BUILT)
	for what in reach small disk sweep layouts; do \
	    $(BIN)/python bench/throughput.py $$what --tokens 300 --rounds 1 --dir build || exit 1; done
	$(BIN)/python bench/scale.py --threads 1 2 --tokens 300 --rounds 1 --dir build
	$(BIN)/python bench/memory.py --mib 64 --workers 1 --dir build
	$(BIN)/python bench/peers.py --tokens 300 --rounds 1 --dir build
	$(BIN)/python bench/store.py --entries 10 --prompt-kib 20 --dir build
	if $(BIN)/python -c 'import llama_cpp, transformers' 2>/dev/null; then \
	    $(BIN)/python bench/ttft.py table --model KV-heavy --tokens 300 --answer 8 --rounds 1 --dir build && \
	    $(BIN)/python bench/ttft.py five --tokens 300 --rounds 1 --dir build; fi

docs: editable $(BUILT)
	$(BIN)/sphinx-build -q -E -W --keep-going docs build/docs

clean:
	rm -rf build dist *.egg-info ds4kv/include ds4kv/lib ds4kv/core/_native*.so
	$(MAKE) -C csrc clean
