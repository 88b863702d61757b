# build.mk: the engine and its kernels, which PGXS knows nothing of.
#
# One object a source, flags by feature and by file: a file whose name ends in
# _avx2, _avxvnni, _avx512, _avx512vnni or _avx512bf16 is compiled for that, everything
# else for the baseline, and backend.c chooses at run time.

ENGINE_CC ?= $(if $(filter default,$(origin CC)),gcc,$(CC))
ENGINE_LIBS = -lcrypto -lcurl -levent -levent_pthreads -ljansson -lpcre2-8 -lutf8proc -lm -ldl -lpthread
ENGINE_CFLAGS ?= -O3 -g
ENGINE_FLAGS = -std=gnu11 -D_GNU_SOURCE -fno-math-errno -ffp-contract=off -fPIC \
	-Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes $(WERROR) \
	-I$(CURDIR)/src/engine -I$(CURDIR)/kernels/cpu
BUILD ?= build

ISA_avx2 = -mavx2 -mfma -mf16c
ISA_avxvnni = $(ISA_avx2) -mavxvnni
ISA_avx512 = $(ISA_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
ISA_avx512vnni = $(ISA_avx512) -mavx512vnni
ISA_avx512bf16 = $(ISA_avx512) -mavx512bf16
isa_of = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $(1))))))

ENGINE_SRC = $(filter-out src/engine/main.c,$(wildcard src/engine/*.c)) $(wildcard kernels/cpu/*.c)
ENGINE_OBJ = $(ENGINE_SRC:%.c=$(BUILD)/%.o)
ENGINE_LIB = $(BUILD)/libengine.a
ENGINE = $(BUILD)/pg_finetune_engine
BENCH = $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/bench_*.c))

.PHONY: engine install-engine uninstall-engine bench-programs
engine: $(ENGINE)
bench-programs: engine $(BENCH)

$(ENGINE): $(BUILD)/src/engine/main.o $(ENGINE_LIB)
	$(ENGINE_CC) $(ENGINE_LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

$(ENGINE_LIB): $(ENGINE_OBJ)
	rm -f $@
	ar qcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_FLAGS) $(call isa_of,$<) $(ENGINE_CFLAGS) -MMD -MP -c -o $@ $<

$(BENCH): %: %.o $(ENGINE_LIB)
	$(ENGINE_CC) $(ENGINE_LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

-include $(ENGINE_OBJ:.o=.d) $(BUILD)/src/engine/main.d $(BENCH:=.d)

install-engine: $(ENGINE)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)'
	$(INSTALL_PROGRAM) $(ENGINE) '$(DESTDIR)$(pkglibdir)/pg_finetune_engine'

uninstall: uninstall-engine
uninstall-engine:
	rm -f '$(DESTDIR)$(pkglibdir)/pg_finetune_engine'

include cuda.mk
