# test/test.mk: how the tests are built and run.
#
#   make test            everything, and one count at the end
#   make test-style      formatting, and the module under clang
#   make test-engine     unit tests, also under sanitizers, and the engine as a program
#   make test-sql        pg_regress, pgTAP, isolation
#   make test-tap        crash, restart, rights … on PostgreSQL::Test
#   make test-faults     crashes, hangs, full disks … N=20 times, until one fails
#   make test-fuzz       each fuzz target over its corpus, and a little further
#   make fuzz            the same, FUZZ_SECONDS=600 further
#   make test-curves     losses beside PEFT's, all references: some minutes
#   make soak            random faults: FAULTS=200, SEED=…, CRASHES=1 for restarts of the server
#   make soak-requests   many sessions that ask, are refused and give up: CLIENTS=200, CALLS=10000
#   make format          lay out every source file
#
# Whatever lies in the folders that test/README.md names is built and run.

FAULT_SHIM_SRC = test/engine/fault_shim.c
TEST_SRC = $(wildcard test/engine/test_*.c)
TEST_HELPERS = $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(TEST_SRC) $(FAULT_SHIM_SRC),$(wildcard test/engine/*.c)))
FAULT_SHIM = build/test/fault_shim.so
UNIT_TESTS = $(TEST_SRC:%.c=$(BUILD)/%)
FUZZ_TARGETS = $(patsubst %.c,$(BUILD)/%,$(wildcard test/fuzz/fuzz_*.c))

TEST_PARTS = style engine sql tap fuzz
.PHONY: test-faults fuzz $(TEST_PARTS:%=test-%) unit-tests fault-shim fuzz-targets sanitized check-format check-clang format

$(TEST_PARTS:%=test-%): test-%:
	scripts/install_packages.sh test
	scripts/fetch_model.sh
	scripts/run_tests.sh $*

# Not part of `make test`: it takes minutes, and no two runs are the same.
FAULTS = 200
SEED =
CRASHES =
.PHONY: soak
soak:
	scripts/install_packages.sh test
	FAULTS='$(FAULTS)' SEED='$(SEED)' CRASHES='$(CRASHES)' scripts/run_tests.sh soak

# The long form of test/tap/055_requests.pl.
CLIENTS = 200
CALLS = 10000
.PHONY: soak-requests
soak-requests:
	scripts/install_packages.sh test
	CLIENTS='$(CLIENTS)' CALLS='$(CALLS)' scripts/run_tests.sh requests

# Not part of `make test` but for one: a minute each.
.PHONY: test-curves
test-curves:
	scripts/install_packages.sh test
	scripts/fetch_model.sh
	scripts/run_tests.sh curves

N ?= 1
test-faults:
	scripts/install_packages.sh test
	scripts/fetch_model.sh
	FAULT_RUNS=$(N) scripts/run_tests.sh faults

FUZZ_SECONDS ?= 600
fuzz:
	scripts/install_packages.sh test
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/run_tests.sh fuzz

unit-tests: $(UNIT_TESTS)
fault-shim: $(FAULT_SHIM)
fuzz-targets: $(FUZZ_TARGETS)

$(UNIT_TESTS): %: %.o $(TEST_HELPERS) $(ENGINE_LIB)
	$(ENGINE_CC) $(ENGINE_LDFLAGS) -o $@ $^ -lcmocka $(ENGINE_LIBS)

$(FUZZ_TARGETS): %: %.o $(ENGINE_LIB)
	$(ENGINE_CC) $(ENGINE_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(ENGINE_LIBS)

# What interrupts a program at one of its calls, preloaded by tests.
$(FAULT_SHIM): $(FAULT_SHIM_SRC)
	@mkdir -p $(@D)
	$(ENGINE_CC) -std=gnu11 -D_GNU_SOURCE -O2 -g -fPIC -shared -Wall -Wextra $(WERROR) -o $@ $< -ldl

-include $(UNIT_TESTS:=.d) $(TEST_HELPERS:.o=.d) $(FUZZ_TARGETS:=.d)

# The engine, its tests and the fuzz targets by clang, as strict as gcc's build, with sanitizers: one
# build serves all three.
SANITIZERS = address,undefined
sanitized:
	+$(MAKE) engine unit-tests fuzz-targets BUILD=build/sanitized ENGINE_CC=clang WERROR=-Werror \
		ENGINE_CFLAGS="-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=fuzzer-no-link,$(SANITIZERS)" \
		ENGINE_LDFLAGS="-fsanitize=$(SANITIZERS)"

# clang reads the module as well, for its warnings only.
check-clang:
	clang -fsyntax-only -std=gnu11 -D_GNU_SOURCE -Werror $(PG_WARNINGS) -Wno-ignored-attributes -isystem '$(shell $(PG_CONFIG) --includedir-server)' \
		$(PG_CPPFLAGS) $(wildcard src/pg/*.c)

SOURCES = $(wildcard $(foreach dir,src/pg src/engine kernels/cpu kernels/cuda bench test/engine test/fuzz,$(dir)/*.[ch]))
check-format:
	clang-format --dry-run --Werror $(SOURCES)

format:
	clang-format -i $(SOURCES)
