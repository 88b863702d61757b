# pg_finetune: the module (PGXS), the engine, the kernels, and all that tests them.
#
#   make                 module and engine
#   make install         both, and the SQL
#   make demo            the whole thing on a private cluster with a real model
#   make test            installs what is missing, runs every test
#   make bench           measures; writes bench/results/latest.tsv

EXTENSION = pg_finetune
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" pg_finetune.control)
MODULE_big = pg_finetune
OBJS = $(patsubst %.c,%.o,$(wildcard src/pg/*.c))
DATA_built = sql/pg_finetune--$(EXTVERSION).sql
DATA = $(wildcard sql/pg_finetune--*--*.sql)
PG_CPPFLAGS = -I$(CURDIR)/src/pg
PG_CFLAGS = -std=gnu11 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
EXTRA_CLEAN = build sql/pg_finetune--$(EXTVERSION).sql

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(PGXS),)
with_llvm = no
include $(PGXS)
all: engine
install: install-engine
endif

sql/pg_finetune--$(EXTVERSION).sql: sql/pg_finetune.sql
	cp $< $@

include build.mk
include test/test.mk
