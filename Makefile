# pg_finetune: the module (PGXS), the engine, the kernels, and all that tests them.
#
#   make                 module and engine
#   make install         both, and the SQL
#   make demo            the whole thing on a private cluster with a real model
#   make test            installs what is missing, runs every test
#   make bench           measures; writes bench/results/latest.tsv
#   make bench-quality   how good models of default options are; writes bench/results/quality.tsv
#
# PGXS is there only after PostgreSQL's development package is: demo, test and
# bench install it first and go on in another make.

EXTENSION = pg_finetune
MODULE_big = pg_finetune
OBJS = $(patsubst %.c,%.o,$(wildcard src/pg/*.c))
# A version is the first one's script and those that lead on from it; what has been released stays
# as it is.  sql/ also holds the inputs of pg_regress.
DATA = $(wildcard sql/pg_finetune--*.sql)
PG_CPPFLAGS = -I$(CURDIR)/src/pg
PG_WARNINGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
PG_CFLAGS = -std=gnu11 $(PG_WARNINGS)
EXTRA_CLEAN = build tmp_check

# The module only waits and talks: there is nothing in it for the JIT to inline.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

all:
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
install: install-engine
else
all:
	@echo "$(PG_CONFIG) is missing: scripts/install_packages.sh build installs what a build needs" >&2; exit 1
endif
all: engine cuda

# PGXS tracks no headers here; the module is small enough to be built anew for any.
$(OBJS): $(wildcard src/pg/*.h)

include build.mk
include test/test.mk

JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test bench bench-quality
demo:
	scripts/install_packages.sh demo
	scripts/fetch_model.sh
	+$(MAKE) $(JOBS) all
	+$(AS_ROOT) $(MAKE) -s install
	scripts/demo.sh

test:
	scripts/install_packages.sh test
	scripts/fetch_model.sh
	scripts/run_tests.sh $(TEST_PARTS)

bench:
	scripts/install_packages.sh build
	scripts/fetch_model.sh
	+$(MAKE) $(JOBS) all bench-programs
	+$(AS_ROOT) $(MAKE) -s install
	bench/run.sh

# QUALITY_PYTHON names an interpreter with PEFT, to compare with (bench/README.md).
bench-quality:
	scripts/install_packages.sh build
	scripts/fetch_model.sh
	+$(MAKE) $(JOBS) all
	+$(AS_ROOT) $(MAKE) -s install
	bench/quality.sh
