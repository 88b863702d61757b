/*
 * device.cu: devices, memory, streams and copies.
 */
#include "cuda.cuh"

#include <stdio.h>
#include <stdlib.h>

#define OLDEST_MAJOR 8 /* bf16 matrix instructions, mma.m16n8k16 */

/* --- status --- */

ft_status
ft_cuda_check(cudaError_t error, const char *what)
{
	if (error == cudaSuccess)
		return FT_OK;
	/* An error of a call, unlike one of the device, must not be found again by the next launch. */
	cudaGetLastError();
	if (error == cudaErrorMemoryAllocation)
		return ft_fail(FT_NO_MEMORY, "%s: device memory is exhausted", what);
	return ft_fail(FT_DEVICE, "%s: %s (%s)", what, cudaGetErrorString(error),
				   cudaGetErrorName(error));
}

ft_status
ft_cuda_launched(const char *what)
{
	return ft_cuda_check(cudaGetLastError(), what);
}

ft_status
ft_cuda_unsupported(const char *op, ft_dtype a, ft_dtype b)
{
	return ft_fail(FT_UNSUPPORTED, "%s: types %s and %s are not supported", op,
				   ft_dtype_get(a)->name, ft_dtype_get(b)->name);
}

ft_status
ft_cuda_shape(const char *op, const char *what, ft_mat m, int64_t rows, int64_t cols)
{
	if (m.rows == rows && m.cols == cols)
		return FT_OK;
	return ft_fail(FT_INVALID, "%s: %s is [%lld, %lld], expected [%lld, %lld]", op, what,
				   (long long) m.rows, (long long) m.cols, (long long) rows, (long long) cols);
}

ft_status
ft_cuda_type(const char *op, const char *what, ft_mat m, ft_dtype expected)
{
	if (m.dtype == expected)
		return FT_OK;
	return ft_fail(FT_UNSUPPORTED, "%s: %s has type %s, expected %s", op, what,
				   ft_dtype_get(m.dtype)->name, ft_dtype_get(expected)->name);
}

ft_status
ft_cuda_enter_device(const ft_device *device)
{
	static __thread int current = -1;

	if (current == device->ordinal)
		return FT_OK;
	if (ft_status status = ft_cuda_check(cudaSetDevice(device->ordinal), "cudaSetDevice"))
		return status;
	current = device->ordinal;
	return FT_OK;
}

ft_status
ft_cuda_enter(const ft_stream *s)
{
	return ft_cuda_enter_device(s->device);
}

/* --- devices --- */

/* "cuda" or "cuda:N". */
static ft_status
parse_name(const char *name, int *ordinal)
{
	char *end;
	long n;

	*ordinal = 0;
	if (name == NULL || strcmp(name, "cuda") == 0)
		return FT_OK;
	if (strncmp(name, "cuda:", 5) == 0 && name[5] >= '0' && name[5] <= '9')
	{
		n = strtol(name + 5, &end, 10);
		if (*end == '\0' && n < 1024)
		{
			*ordinal = (int) n;
			return FT_OK;
		}
	}
	return ft_fail(strncmp(name, "cuda", 4) == 0 ? FT_INVALID : FT_DEVICE,
				   "device \"%s\" is not of the form \"cuda\" or \"cuda:N\"", name);
}

static ft_status
count_devices(int *n)
{
	cudaError_t error = cudaGetDeviceCount(n);

	if (error == cudaErrorInsufficientDriver)
	{
		int driver = 0;

		cudaGetLastError();
		cudaDriverGetVersion(&driver);
		if (driver == 0)
			return ft_hint(ft_fail(FT_DEVICE, "no CUDA driver found (libcuda.so.1)"),
						   "Install NVIDIA's driver, release 580 or later.");
		return ft_hint(ft_fail(FT_DEVICE, "the CUDA driver supports CUDA %d.%d, needed is %d.%d",
							   driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
							   CUDART_VERSION % 1000 / 10),
					   "Update NVIDIA's driver to release 580 or later.");
	}
	if (error == cudaErrorNoDevice || (error == cudaSuccess && *n == 0))
	{
		cudaGetLastError();
		return ft_hint(ft_fail(FT_DEVICE, "no CUDA device is visible"),
					   "Check nvidia-smi and CUDA_VISIBLE_DEVICES.");
	}
	return ft_cuda_check(error, "cudaGetDeviceCount");
}

static ft_status
look_at_device(ft_device *device)
{
	cudaDeviceProp properties;

	FT_TRY(ft_cuda_check(cudaGetDeviceProperties(&properties, device->ordinal),
						 "cudaGetDeviceProperties"));
	device->major = properties.major;
	device->minor = properties.minor;
	device->multiprocessors = properties.multiProcessorCount;
	snprintf(device->name, sizeof device->name, "cuda:%d (%.48s)", device->ordinal,
			 properties.name);
	if (device->major < OLDEST_MAJOR)
		return ft_fail(FT_DEVICE, "%s has compute capability %d.%d, needed is %d.0 or later",
					   device->name, device->major, device->minor, OLDEST_MAJOR);
	return FT_OK;
}

ft_status
ft_cuda_device_open(const ft_device_config *config, ft_device **result)
{
	ft_device *device;
	ft_status status;
	int ordinal;
	int n = 0;

	FT_TRY(parse_name(config->name, &ordinal));
	FT_TRY(count_devices(&n));
	if (ordinal >= n)
		return ft_fail(FT_DEVICE, "no device cuda:%d, the machine has %d", ordinal, n);
	device = (ft_device *) calloc(1, sizeof *device);
	if (device == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	device->ordinal = ordinal;
	device->numerics = config->numerics;
	status = look_at_device(device);
	if (status == FT_OK)
		status = ft_cuda_enter_device(device);
	/* The context is made here and not inside the first operation. */
	if (status == FT_OK)
		status = ft_cuda_check(cudaFree(NULL), "making a CUDA context");
	if (status == FT_OK)
		status = ft_lt_open(device);
	if (status != FT_OK)
	{
		free(device);
		return status;
	}
	*result = device;
	return FT_OK;
}

void
ft_cuda_device_close(ft_device *device)
{
	if (device == NULL)
		return;
	ft_lt_close(device);
	free(device);
}

ft_status
ft_cuda_device_info(ft_device *device, ft_device_info *info)
{
	size_t available;
	size_t total;

	FT_TRY(ft_cuda_enter_device(device));
	FT_TRY(ft_cuda_check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo"));
	memset(info, 0, sizeof *info);
	snprintf(info->name, sizeof info->name, "%s", device->name);
	snprintf(info->features, sizeof info->features, "sm_%d%d, %d multiprocessors", device->major,
			 device->minor, device->multiprocessors);
	info->numerics = device->numerics;
	info->compute_dtype = device->numerics == FT_NUMERICS_FAST ? FT_BF16 : FT_F32;
	info->memory_total = (int64_t) total;
	info->memory_free = (int64_t) available;
	return FT_OK;
}

/* --- memory --- */

static ft_status
out_of_memory(const char *space, size_t bytes)
{
	size_t available = 0;
	size_t total = 0;

	cudaMemGetInfo(&available, &total);
	return ft_fail(FT_NO_MEMORY,
				   "cannot allocate %zu bytes of %s memory, %zu of %zu bytes of the "
				   "device's are free",
				   bytes, space, available, total);
}

ft_status
ft_cuda_mem_alloc(ft_device *device, ft_mem_space space, size_t bytes, void **memory)
{
	size_t wanted = bytes > 0 ? bytes : 1;
	cudaError_t error;

	*memory = NULL;
	FT_TRY(ft_cuda_enter_device(device));
	if (space == FT_MEM_HOST)
		error = cudaHostAlloc(memory, wanted, cudaHostAllocDefault);
	else
		error = cudaMalloc(memory, wanted);
	if (error == cudaErrorMemoryAllocation)
	{
		cudaGetLastError();
		return out_of_memory(space == FT_MEM_HOST ? "pinned host" : "device", bytes);
	}
	FT_TRY(ft_cuda_check(error, space == FT_MEM_HOST ? "cudaHostAlloc" : "cudaMalloc"));
	if (space == FT_MEM_HOST)
	{
		memset(*memory, 0, wanted);
		return FT_OK;
	}
	/* On the default stream, which ours do not wait for: so wait here. */
	error = cudaMemset(*memory, 0, wanted);
	if (error == cudaSuccess)
		error = cudaStreamSynchronize(0);
	if (error != cudaSuccess)
	{
		cudaFree(*memory);
		*memory = NULL;
	}
	return ft_cuda_check(error, "zeroing device memory");
}

void
ft_cuda_mem_free(ft_device *device, ft_mem_space space, void *memory)
{
	if (memory == NULL || ft_cuda_enter_device(device) != FT_OK)
		return;
	if (space == FT_MEM_HOST)
		cudaFreeHost(memory);
	else
		cudaFree(memory);
}

/* --- streams --- */

static ft_status
fill_stream(ft_stream *s)
{
	FT_TRY(ft_cuda_check(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking),
						 "cudaStreamCreate"));
	FT_TRY(ft_cuda_mem_alloc(s->device, FT_MEM_DEVICE, FT_LT_WORKSPACE, &s->workspace));
	FT_TRY(ft_cuda_mem_alloc(s->device, FT_MEM_DEVICE, FT_PARTIAL_SUMS * sizeof(double),
							 (void **) &s->partials));
	for (int i = 0; i < FT_UPLOAD_SLOTS; i++)
	{
		FT_TRY(ft_cuda_mem_alloc(s->device, FT_MEM_HOST, FT_UPLOAD_BYTES, &s->slots[i].memory));
		FT_TRY(ft_cuda_check(cudaEventCreateWithFlags(&s->slots[i].done, cudaEventDisableTiming),
							 "cudaEventCreate"));
	}
	return FT_OK;
}

ft_status
ft_cuda_stream_create(ft_device *device, ft_stream **result)
{
	ft_stream *s;
	ft_status status;

	FT_TRY(ft_cuda_enter_device(device));
	s = (ft_stream *) calloc(1, sizeof *s);
	if (s == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	s->device = device;
	status = fill_stream(s);
	if (status != FT_OK)
	{
		ft_cuda_stream_destroy(s);
		return status;
	}
	*result = s;
	return FT_OK;
}

void
ft_cuda_stream_destroy(ft_stream *s)
{
	if (s == NULL)
		return;
	if (ft_cuda_enter(s) == FT_OK)
	{
		if (s->stream)
			cudaStreamSynchronize(s->stream);
		for (int i = 0; i < FT_UPLOAD_SLOTS; i++)
		{
			ft_cuda_mem_free(s->device, FT_MEM_HOST, s->slots[i].memory);
			if (s->slots[i].done)
				cudaEventDestroy(s->slots[i].done);
		}
		ft_cuda_mem_free(s->device, FT_MEM_DEVICE, s->workspace);
		ft_cuda_mem_free(s->device, FT_MEM_DEVICE, s->partials);
		ft_cuda_mem_free(s->device, FT_MEM_DEVICE, s->scratch);
		if (s->stream)
			cudaStreamDestroy(s->stream);
	}
	free(s);
}

ft_status
ft_cuda_stream_synchronize(ft_stream *s)
{
	FT_TRY(ft_cuda_enter(s));
	return ft_cuda_check(cudaStreamSynchronize(s->stream), "waiting for the device");
}

ft_status
ft_cuda_scratch(ft_stream *s, size_t bytes, void **memory)
{
	if (bytes > s->scratch_bytes)
	{
		FT_TRY(ft_cuda_stream_synchronize(s));
		ft_cuda_mem_free(s->device, FT_MEM_DEVICE, s->scratch);
		s->scratch = NULL;
		s->scratch_bytes = 0;
		FT_TRY(ft_cuda_mem_alloc(s->device, FT_MEM_DEVICE, bytes, &s->scratch));
		s->scratch_bytes = bytes;
	}
	*memory = s->scratch;
	return FT_OK;
}

/* --- copies --- */

/* A copy that the caller need not wait for: through a pinned buffer of ours, once its last copy is
 * done. */
static ft_status
upload(ft_stream *s, void *to, const void *from, size_t bytes)
{
	ft_upload_slot *slot = &s->slots[s->next_slot];

	if (slot->used)
		FT_TRY(ft_cuda_check(cudaEventSynchronize(slot->done), "waiting for a copy"));
	memcpy(slot->memory, from, bytes);
	FT_TRY(
		ft_cuda_check(cudaMemcpyAsync(to, slot->memory, bytes, cudaMemcpyHostToDevice, s->stream),
					  "copying to the device"));
	FT_TRY(ft_cuda_check(cudaEventRecord(slot->done, s->stream), "cudaEventRecord"));
	slot->used = true;
	s->next_slot = (s->next_slot + 1) % FT_UPLOAD_SLOTS;
	return FT_OK;
}

ft_status
ft_cuda_copy_to_device(ft_stream *s, void *to, const void *from_host, size_t bytes)
{
	if (bytes == 0)
		return FT_OK;
	FT_TRY(ft_cuda_enter(s));
	if (bytes <= FT_UPLOAD_BYTES)
		return upload(s, to, from_host, bytes);
	FT_TRY(ft_cuda_check(cudaMemcpyAsync(to, from_host, bytes, cudaMemcpyHostToDevice, s->stream),
						 "copying to the device"));
	return ft_cuda_check(cudaStreamSynchronize(s->stream), "copying to the device");
}

ft_status
ft_cuda_copy_to_host(ft_stream *s, void *to_host, const void *from, size_t bytes)
{
	FT_TRY(ft_cuda_enter(s));
	if (bytes > 0)
		FT_TRY(
			ft_cuda_check(cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, s->stream),
						  "copying to the host"));
	return ft_cuda_check(cudaStreamSynchronize(s->stream), "waiting for the device");
}

ft_status
ft_cuda_copy(ft_stream *s, void *to, const void *from, size_t bytes)
{
	if (bytes == 0)
		return FT_OK;
	FT_TRY(ft_cuda_enter(s));
	return ft_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, s->stream),
						 "copying on the device");
}

ft_status
ft_cuda_zero(ft_stream *s, void *memory, size_t bytes)
{
	if (bytes == 0)
		return FT_OK;
	FT_TRY(ft_cuda_enter(s));
	return ft_cuda_check(cudaMemsetAsync(memory, 0, bytes, s->stream), "zeroing device memory");
}
