# Two commands from a fresh clone: `make demo` and `make test`. Each sets itself up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(shell find native -not -path 'native/tests/*' -not -path 'native/models/*' -type f)
C_FILES := $(shell find native benchmarks -name '*.[ch]')

.PHONY: demo test lint native-tests sanitize sanitize-python torture models bench bench-short figures peers report docs kernel-ab instructions instructions-record clean

demo: $(VENV)/installed
	$(BIN)/zcrpc lab seed --seconds 2 --rounds 3
	$(BIN)/zcrpc lab upload

# Files side by side, then what measures, alone.
test: $(VENV)/installed native-tests
	$(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile -m "not alone"
	$(BIN)/python -m pytest tests -m alone

# Rebuilt when anything native changes; Python files are used where they stand.
$(VENV)/installed: pyproject.toml $(CORE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

native-tests:
	cmake -S native -B build/native > /dev/null
	cmake --build build/native -j 2
	ctest --test-dir build/native --output-on-failure

# The C tests once more, under the sanitizers.
sanitize:
	for kind in address,undefined thread; do \
	    cmake -S native -B build/$$kind -DZCRPC_SANITIZE=$$kind > /dev/null && \
	    cmake --build build/$$kind -j 2 && \
	    ctest --test-dir build/$$kind --output-on-failure || exit 1; \
	done

# The path of a small call under the sanitizers, from Python: a build of its own, beside the packages of .venv.
SANITIZED := build/sanitized
PATH_TESTS := path pending call batches bad_input eager
sanitize-python: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(SANITIZED) \
	    -C cmake.define.ZCRPC_SANITIZE=address,undefined -C build-dir=$(SANITIZED)-objects .
	PYTHONPATH=$(SANITIZED):$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	    LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	    $(PYTHON) -P -m pytest -q -p no:cacheprovider $(PATH_TESTS:%=tests/test_%.py)

# Every strategy for a minute, plain and under ThreadSanitizer: two threads that read, one that writes.
TORTURE_SECONDS ?= 60
torture: $(VENV)/installed
	mkdir -p build
	$(BIN)/zcrpc lab torture --seconds $(TORTURE_SECONDS) --json build/torture.json
	cmake -S native -B build/thread -DZCRPC_SANITIZE=thread > /dev/null
	cmake --build build/thread -j 2 --target torture
	TSAN_OPTIONS=halt_on_error=1 build/thread/torture $(TORTURE_SECONDS) each 30 2 1

# The protocols: every interleaving of the spin models, every execution of the weak-memory explorer's programs. Needs spin.
models: $(VENV)/installed
	$(BIN)/python native/models/run.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

bench: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks

# Every benchmark runs, briefly: they assert what they transfer, so this is a test of the benchmarks, not of speed.
bench-short: $(VENV)/installed
	ZCRPC_BENCH_SHORT=1 $(BIN)/python -m pytest benchmarks --benchmark-min-rounds=1 --benchmark-max-time=0.05 --benchmark-warmup=off

# Instructions of the native path per request, beside what was recorded. Needs valgrind.
instructions instructions-record: $(VENV)/installed
	cmake -S native -B build/native > /dev/null
	cmake --build build/native -j 2 --target instructions
	$(BIN)/python benchmarks/instructions.py $(if $(findstring record,$@),--record)

figures: $(VENV)/installed
	$(BIN)/python benchmarks/figures.py

# zcrpc beside other stacks, 40 minutes on two quiet cores; the tables and drawings that show them. PEERS has options.
peers: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[peers]'
	mkdir -p build
	PYTHONPATH=benchmarks $(BIN)/python -m peers --json build/peers.json --plot docs/peers.svg --short README.md --full docs/peers.md $(PEERS)

# Every experiment with its default settings, and the page that shows them: build/report.html. Results that are there are kept.
RESULTS := seed bench kernel upload torture conflicts simulate validation

report: $(VENV)/installed $(RESULTS:%=build/results/%.json)
	$(BIN)/zcrpc lab report $(RESULTS:%=build/results/%.json) --out build/report.html

build/results/upload.json: SETTINGS := --payload 16384,65536,262144,1048576,4194304,16777216 --rounds 3
build/results/torture.json: SETTINGS := --locks all

build/results/conflicts.json: | $(VENV)/installed native-tests
	mkdir -p $(@D)
	$(BIN)/python -m zcrpc.lab.conflicts build/native/test_conflicts $@

build/results/validation.json: | $(VENV)/installed
	mkdir -p $(@D)
	$(BIN)/zcrpc lab simulate --validate --json $@

build/results/%.json: | $(VENV)/installed
	mkdir -p $(@D)
	$(BIN)/zcrpc lab $* $(SETTINGS) --json $@

# build/site/index.html. A link that leads nowhere, or a page that is not in the menu, is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

# Linux before and after its change to locks of mappings, booted in QEMU: docs/kernel.md. KERNEL_AB has options.
kernel-ab: $(VENV)/installed
	PYTHONPATH=benchmarks $(BIN)/python -m kernel_ab $(KERNEL_AB)

clean:
	rm -rf build $(VENV)
