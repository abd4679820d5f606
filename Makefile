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

CLANGXX ?= $(firstword $(wildcard /usr/bin/clang++ /usr/bin/clang++-[0-9][0-9] /usr/local/bin/clang++))
FUZZ_TARGETS := frame_fuzz codec_fuzz topk_fuzz handshake_fuzz carrier_fuzz

.PHONY: demo data test unit native-test churn fuzz fuzz-briefly lint typecheck format sanitize bench nat-matrix soak soak-sim wheel clean help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/installed  ## four peers train on real text, one is killed, one joins late
	$(BIN)/decentral demo

data: $(VENV)/installed  ## text for DiPaCo and images for diffusion, from Debian packages, into ~/.cache
	$(BIN)/python -P -m decentral.dipaco.corpus
	$(BIN)/python -P -m decentral.diffusion.images

test: native-test fuzz-briefly unit  ## everything that CI runs

# What waits for nobody's clock shares the cores; what measures or strikes has the machine alone;
# what runs in namespaces mostly waits, two files at a time. Each gets a second chance, which the
# summary shows: a machine that is busy with something else for a moment is not a fault, but what
# shows there is worth a look. The simulator alone does not.
unit: $(VENV)/installed-test
	$(BIN)/python -P -m pytest -q -n 2 -m "not alone" --reruns 1 -rR tests/unit tests/sim
	$(BIN)/python -P -m pytest -q -n 3 -m "not alone" --reruns 1 -rR --durations 10 tests/integration
	$(BIN)/python -P -m pytest -q -m alone tests/sim
	$(BIN)/python -P -m pytest -m alone --reruns 1 -rR --durations 20 tests/integration
	$(BIN)/python -P -m pytest -q -n 2 --dist loadfile --reruns 1 -rR --durations 10 tests/netns

native-test: $(VENV)/tools  ## the C++ tests, without Python
	$(BIN)/cmake -S native -B build/native -G Ninja -DDECENTRAL_TESTS=ON -DDECENTRAL_WERROR=ON \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja >/dev/null
	$(BIN)/cmake --build build/native
	$(CTEST) build/native --repeat until-pass:2

# The tests have run the targets in their stand-alone form; coverage guidance needs clang.
fuzz-briefly:
	@if [ -n "$(CLANGXX)" ] && echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' \
	  | $(CLANGXX) -x c++ -fsanitize=fuzzer - -o /dev/null 2>/dev/null; then $(MAKE) fuzz FUZZ_S=5; \
	else echo "no libFuzzer here (apt install clang libclang-rt-14-dev): only the stand-alone fuzzers ran"; fi

fuzz: $(VENV)/tools  ## libFuzzer on every decoder (FUZZ_S=60 seconds each; needs clang)
	$(BIN)/cmake -S native -B build/fuzz -G Ninja -DDECENTRAL_FUZZ=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_COMPILER=$(CLANGXX) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja >/dev/null
	$(BIN)/cmake --build build/fuzz
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/found/$$target && build/fuzz/fuzz/$$target -max_total_time=$(or $(FUZZ_S),60) \
	    -max_len=4096 -verbosity=0 -print_final_stats=1 -artifact_prefix=build/fuzz/crash-$$target- \
	    build/fuzz/found/$$target native/fuzz/corpus/$$target || exit 1; \
	done

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

bench: $(VENV)/installed  ## every benchmark, one at a time (the shaped ones need root)
	for peers in 2 4; do for size in 1 64 256; do \
	  $(BIN)/decentral bench allreduce --peers $$peers --size-mib $$size --encrypt off \
	    --against gloo,tcp || exit 1; done; done
	$(BIN)/decentral bench allreduce --peers 4 --size-mib 64 --encrypt on --against gloo,tls
	for rate in 200 1000; do \
	  $(BIN)/decentral bench allreduce --peers 4 --size-mib 64 --net shaped --rates-mbit $$rate \
	    --against iperf3 || exit 1; done
	$(BIN)/decentral bench unequal --size-mib 64 --change 3:3:400 --change 6:0:100 --runs 10
	$(BIN)/decentral bench link
	for congestion in cubic bbr; do \
	  $(BIN)/decentral bench link --rate-mbit 200 --rtt-ms 100 --loss 0.001 --size-mib 256 \
	    --congestion $$congestion --streams auto,1 || exit 1; done
	$(BIN)/decentral bench latency
	$(BIN)/decentral bench concurrency
	$(BIN)/decentral bench memory
	$(BIN)/decentral bench strategies --seeds 3
	$(BIN)/decentral bench admission
	$(BIN)/decentral bench codecs

soak-sim: $(VENV)/installed-test  ## an hour of fresh seeds (SOAK_S=3600), crowds, hours of detection
	DECENTRAL_FRESH=1 $(BIN)/python -P -m pytest -q tests/sim/test_stateful.py tests/sim/test_everything.py
	$(BIN)/decentral simulate --peers 32 --fresh --for $(or $(SOAK_S),3600)
	$(BIN)/decentral simulate detection --peers 1000 --peer-hours 3000
	$(BIN)/decentral simulate crowd --peers 1000 --joiners 200
	$(BIN)/decentral simulate crowd --peers 4096 --joiners 200

nat-matrix: $(VENV)/installed  ## every pair of NATs connects, with data over the link (root)
	$(BIN)/decentral bench nat

churn: $(VENV)/installed  ## real processes under faults, audited: what CI runs, with its reports in churn-report/
	$(BIN)/decentral churn --peers 16 --seconds 240 --rate 1 --seed 1 --report churn-report/all
	$(BIN)/decentral churn --peers 24 --seconds 116 --faults kill --rate 0.034483 --even --seed 2 \
	  --step-s 0.5 --network loopback --report churn-report/kill
	$(BIN)/decentral churn --preset pccl --seconds 120 --seed 3 --network loopback --report churn-report/pccl
	$(BIN)/decentral churn --preset turnover --joins 500 --every-s 0.25 --peers 4 --seed 4 \
	  --network loopback --report churn-report/turnover
	$(BIN)/decentral bench failpoints --times 5
	$(BIN)/decentral churn --hostile --seconds 24 --seed 1 --report churn-report/hostile

soak: $(VENV)/installed-test  ## hours: churn, failpoints, hostile bytes, coordinators, storms, partitions, aborts
	$(BIN)/decentral churn --peers 32 --seconds $(or $(SOAK_S),3600) --rate 1 --step-s 0.3 \
	  --report churn-report/soak
	$(BIN)/decentral churn --peers 24 --seconds 600 --faults kill --rate 0.034483 --even \
	  --step-s 0.5 --network loopback --report churn-report/soak-kill
	$(BIN)/decentral churn --preset pccl --seconds 600 --network loopback --report churn-report/soak-pccl
	$(BIN)/decentral bench failpoints --times 100
	DECENTRAL_SOAK=1 $(BIN)/python -P -m pytest tests/netns/test_nat_runs.py
	$(BIN)/decentral churn --hostile --seconds 300 --messages 10000000 --replays 1000000 \
	  --report churn-report/soak-hostile
	for kind in kill stop drop; do \
	  $(BIN)/decentral bench failover --kind $$kind --times 100 || exit 1; done
	$(BIN)/decentral bench storm --joiners 48
	for sides in 5,3 4,4; do $(BIN)/decentral bench partition --sides $$sides || exit 1; done
	$(BIN)/decentral bench state
	for kind in kill stop cut; do \
	  $(BIN)/decentral bench faults --kind $$kind --instants 20 --size-mib 256 || exit 1; done
	$(BIN)/decentral bench faults --aborts 500

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
