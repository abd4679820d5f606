# Two commands matter: `make demo` and `make test`. Both set up everything on a fresh machine
# (Debian 12, Python 3.11, g++, OpenSSL headers) in .venv, and leave the system alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# torch first: a later dependency on plain `torch` must find it there.
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
SOURCES := $(shell find native peer collectives decentral -name '*.py' -o -name '*.cc' \
             -o -name '*.h' -o -name 'CMakeLists.txt') pyproject.toml
CTEST := $(BIN)/ctest --output-on-failure --test-dir

.PHONY: demo test unit native-test lint typecheck format sanitize bench soak wheel clean help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/installed  ## four peers train on real text, one is killed, one joins late
	$(BIN)/decentral demo

test: native-test unit  ## everything that CI runs

unit: $(VENV)/installed-test
	$(BIN)/python -P -m pytest

native-test: $(VENV)/tools  ## the C++ tests, without Python
	$(BIN)/cmake -S native -B build/native -G Ninja -DDECENTRAL_TESTS=ON -DDECENTRAL_WERROR=ON \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja >/dev/null
	$(BIN)/cmake --build build/native
	$(CTEST) build/native

sanitize: $(VENV)/tools  ## the C++ tests under ASan+UBSan, then TSan
	for kind in "address;undefined" thread; do \
	  dir="build/sanitize-$${kind%%;*}"; \
	  $(BIN)/cmake -S native -B $$dir -G Ninja -DDECENTRAL_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DDECENTRAL_SANITIZE="$$kind" -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja >/dev/null && \
	  $(BIN)/cmake --build $$dir && $(CTEST) $$dir || exit 1; \
	done

lint: $(VENV)/dev  ## ruff and clang-format, changing nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'native/*.cc' 'native/*.h')

format: $(VENV)/dev  ## ruff and clang-format, in place
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'native/*.cc' 'native/*.h')

typecheck: $(VENV)/dev $(VENV)/installed  ## mypy --strict on the installed package
	cd /tmp && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) -p decentral

bench: $(VENV)/installed  ## all-reduce against gloo, codecs, links; one at a time
	$(BIN)/decentral bench allreduce --peers 2 --size-mib 64 --against gloo
	$(BIN)/decentral bench allreduce --peers 4 --size-mib 64 --against gloo
	$(BIN)/decentral bench allreduce --peers 4 --size-mib 64 --encrypt on

soak: $(VENV)/installed  ## many simulator seeds (SEEDS=500)
	$(BIN)/decentral simulate --peers 32 --seeds $(or $(SEEDS),500)

wheel: $(VENV)/dev  ## sdist, and a wheel built from it
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf build dist $(VENV)

# ------------------------------------------------------------------------------- environments

$(VENV)/tools: constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "decentral needs Python 3.11 or later: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "decentral needs Python 3.11 or later, and $(PYTHON) is older"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "decentral needs a C++20 compiler: apt install g++"; exit 1; }
	@echo '#include <openssl/ssl.h>' | $${CXX:-g++} -E -x c++ - >/dev/null 2>&1 || { echo "decentral needs the OpenSSL headers: apt install libssl-dev"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(BUILD_TOOLS)
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(PIP) install -c constraints.txt torch numpy
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -c constraints.txt --no-build-isolation --force-reinstall --no-deps .
	$(PIP) install -c constraints.txt decentral
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install -c constraints.txt "decentral[test]"
	touch $@

$(VENV)/dev: $(VENV)/tools
	$(PIP) install -c constraints.txt torch build clang-format mypy ruff
	touch $@
