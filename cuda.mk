# cuda.mk: the CUDA backend, a shared object of its own that the engine opens at
# run time; and the same kernels for the CPU, which tests run where there is no GPU.
#
# Only active where nvcc is found: nothing else depends on it.  The object holds
# code for sm_80 and sm_90 and PTX of both for what comes after, links the CUDA
# runtime statically, and neither the driver nor cuBLAS.

NVCC ?= $(firstword $(wildcard $(shell command -v nvcc 2>/dev/null)) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_SRC = $(wildcard kernels/cuda/*.cu)
CUDA_TARGETS = $(foreach n,80 90,-gencode arch=compute_$(n),code=[sm_$(n),compute_$(n)])
CUDA_HOST_FLAGS = -fPIC,-Wall,-Wextra,-fvisibility=hidden,-fno-exceptions,-fno-rtti
CUDA_INCLUDES = -I$(CURDIR)/src/engine -I$(CURDIR)/kernels/cuda
NVCC_FLAGS = -std=c++17 -O3 -lineinfo $(CUDA_TARGETS) -Xcompiler $(CUDA_HOST_FLAGS) \
	$(if $(WERROR),--Werror all-warnings) $(CUDA_INCLUDES)
# What keeps the compiler polite on a machine with few cores.
NVCC_NICE ?= nice
CUDA_OBJ = $(CUDA_SRC:%.cu=$(BUILD)/%.o)
CUDA_BACKEND = $(BUILD)/pg_finetune_cuda.so

.PHONY: cuda install-cuda emulated
cuda: $(if $(NVCC),$(CUDA_BACKEND))

ifneq ($(NVCC),)
$(BUILD)/kernels/cuda/%.o: kernels/cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC_NICE) $(NVCC) $(NVCC_FLAGS) -MD -MP -MF $(@:.o=.d) -c -o $@ $<

# Exactly one symbol leaves the object; what it lacks shows here and not on a machine with a GPU.
$(CUDA_BACKEND): $(CUDA_OBJ) $(BUILD)/src/engine/tensor.o kernels/cuda/exports.map
	$(ENGINE_CC) -shared -Wl,-z,defs -Wl,--version-script=kernels/cuda/exports.map -o $@ \
		$(filter %.o,$^) $(dir $(NVCC))../lib64/libcudart_static.a -lm -ldl -lrt -lpthread

-include $(CUDA_OBJ:.o=.d)

install-cuda: $(CUDA_BACKEND)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)'
	$(INSTALL_PROGRAM) $(CUDA_BACKEND) '$(DESTDIR)$(pkglibdir)/pg_finetune_cuda.so'

install-engine: install-cuda
endif

uninstall-engine: uninstall-cuda
.PHONY: uninstall-cuda
uninstall-cuda:
	rm -f '$(DESTDIR)$(pkglibdir)/pg_finetune_cuda.so'

# The kernels against test/gpu/emulator.h.  They need a C++ compiler but none of its library.
EMULATED = $(BUILD)/emulated/pg_finetune_cuda.so
EMULATED_OBJ = $(patsubst kernels/cuda/%.cu,$(BUILD)/emulated/%.o,$(filter-out %/gemm_lt.cu,$(CUDA_SRC))) \
	$(BUILD)/emulated/emulator.o
EMULATED_FLAGS = -x c++ -std=c++17 -nostdinc++ -O2 -g -fPIC -fno-exceptions -fno-rtti -fvisibility=hidden -Wall -Wextra \
	$(WERROR) $(CUDA_INCLUDES) -I$(CURDIR)/test/gpu
emulated: $(EMULATED)

$(BUILD)/emulated/%.o: kernels/cuda/%.cu
	@mkdir -p $(@D)
	clang $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/emulated/emulator.o: test/gpu/emulator.cpp
	@mkdir -p $(@D)
	clang $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<

$(EMULATED): $(EMULATED_OBJ) $(BUILD)/src/engine/tensor.o kernels/cuda/exports.map
	$(ENGINE_CC) -shared -Wl,-z,defs -Wl,--version-script=kernels/cuda/exports.map -o $@ $(filter %.o,$^) \
		-lm -lpthread

-include $(EMULATED_OBJ:.o=.d)

# What needs a GPU: test/gpu/README.md.
$(BUILD)/gpu/peak: test/gpu/peak.c $(ENGINE_LIB)
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_FLAGS) $(ENGINE_CFLAGS) $(ENGINE_LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

.PHONY: gpu-check gpu-bench
gpu-check:
	test/gpu/check.sh

gpu-bench:
	test/gpu/bench.sh
