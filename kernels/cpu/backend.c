/*
 * backend.c: the CPU's table of operations, its device and its streams.
 *
 * The instruction set is chosen when a device is opened.  The environment
 * variable PG_FINETUNE_CPU (portable, avx2, avx512, bf16) chooses a lower one,
 * or bf16 products where the processor would have to emulate them: for tests.
 */
#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool
has_avx2(void)
{
#if defined(__x86_64__)
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
	return false;
#endif
}

static bool
has_avx512(void)
{
#if defined(__x86_64__)
	return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
	return false;
#endif
}

static bool
has_avx512_bf16(void)
{
#if defined(__x86_64__)
	return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
	return false;
#endif
}

static ft_status
choose_kernels(ft_device *device)
{
	const char *wish = getenv("PG_FINETUNE_CPU");
	bool bf16 = has_avx512_bf16();

	if (wish != NULL && wish[0] == '\0')
		wish = NULL;
	device->kernels = &ft_kernels_portable;
#if defined(__x86_64__)
	if (has_avx512() && (wish == NULL || strcmp(wish, "avx512") == 0 || strcmp(wish, "bf16") == 0))
		device->kernels = &ft_kernels_avx512;
	else if (has_avx2() && (wish == NULL || strcmp(wish, "avx2") == 0))
		device->kernels = &ft_kernels_avx2;
#endif
	if (wish != NULL)
	{
		bf16 = strcmp(wish, "bf16") == 0;
		if (!bf16 && strcmp(wish, device->kernels->name) != 0)
			return ft_fail(FT_DEVICE, "PG_FINETUNE_CPU asks for \"%s\", which this processor lacks",
						   wish);
	}
	device->compute_dtype = bf16 && device->numerics == FT_NUMERICS_FAST ? FT_BF16 : FT_F32;
	snprintf(device->features, sizeof device->features, "%s%s", device->kernels->name,
			 device->compute_dtype == FT_BF16 ? " bf16" : "");
	return FT_OK;
}

static ft_status
device_open(const ft_device_config *config, ft_device **result)
{
	ft_device *device;
	ft_status status;

	if (config->name != NULL && strcmp(config->name, "cpu") != 0)
		return ft_fail(FT_DEVICE, "device \"%s\" is not the CPU", config->name);
	if (config->threads < 1 || config->threads > 1024)
		return ft_fail(FT_INVALID, "number of threads must be between 1 and 1024, not %d",
					   config->threads);
	device = calloc(1, sizeof *device);
	if (device == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory for the CPU device");
	device->numerics = config->numerics;
	status = choose_kernels(device);
	if (status == FT_OK)
		status = ft_pool_create(config->threads, &device->pool);
	if (status != FT_OK)
	{
		free(device);
		return status;
	}
	*result = device;
	return FT_OK;
}

static void
device_close(ft_device *device)
{
	if (device == NULL)
		return;
	ft_pool_destroy(device->pool);
	free(device);
}

static ft_status
device_info(ft_device *device, ft_device_info *info)
{
	long page = sysconf(_SC_PAGESIZE);

	memset(info, 0, sizeof *info);
	snprintf(info->name, sizeof info->name, "cpu");
	snprintf(info->features, sizeof info->features, "%s", device->features);
	info->threads = ft_pool_threads(device->pool);
	info->numerics = device->numerics;
	info->compute_dtype = device->compute_dtype;
	info->memory_total = (int64_t) sysconf(_SC_PHYS_PAGES) * page;
	info->memory_free = (int64_t) sysconf(_SC_AVPHYS_PAGES) * page;
	return FT_OK;
}

static ft_status
stream_create(ft_device *device, ft_stream **result)
{
	ft_stream *s = calloc(1, sizeof *s);

	if (s != NULL)
		s->worker = calloc((size_t) ft_pool_threads(device->pool), sizeof *s->worker);
	if (s == NULL || s->worker == NULL)
	{
		free(s);
		return ft_fail(FT_NO_MEMORY, "out of memory for a stream");
	}
	s->device = device;
	*result = s;
	return FT_OK;
}

static void
stream_destroy(ft_stream *s)
{
	if (s == NULL)
		return;
	for (int i = 0; i < ft_pool_threads(s->device->pool); i++)
		free(s->worker[i].memory);
	free(s->worker);
	free(s->shared.memory);
	free(s);
}

static ft_status
stream_synchronize(ft_stream *s)
{
	(void) s;
	return FT_OK;
}

ft_status
ft_scratch_get(ft_scratch *scratch, size_t bytes, void **memory)
{
	if (scratch->bytes < bytes)
	{
		size_t rounded = (bytes + 4095) / 4096 * 4096;

		free(scratch->memory);
		scratch->bytes = 0;
		scratch->memory = aligned_alloc(64, rounded);
		if (scratch->memory == NULL)
			return ft_fail(FT_NO_MEMORY, "out of memory for %zu bytes of scratch", rounded);
		scratch->bytes = rounded;
	}
	*memory = scratch->memory;
	return FT_OK;
}

ft_status
ft_worker_scratch_reserve(ft_stream *s, size_t bytes)
{
	void *memory;

	for (int i = 0; i < ft_pool_threads(s->device->pool); i++)
		FT_TRY(ft_scratch_get(&s->worker[i], bytes, &memory));
	return FT_OK;
}

void
ft_run(ft_stream *s, int64_t n, int64_t cost, ft_task task, void *context)
{
	/* about ten microseconds of work: less is not worth waking a thread for */
	int64_t grain = ft_divide_up(32768, cost > 0 ? cost : 1);
	int64_t fair = ft_divide_up(n, (int64_t) 8 * ft_pool_threads(s->device->pool));

	ft_pool_run(s->device->pool, n, grain > fair ? grain : fair, task, context);
}

ft_status
ft_bad_shape(const char *operation, const char *what, ft_mat m, int64_t rows, int64_t cols)
{
	return ft_fail(FT_INVALID, "%s: %s is [%lld, %lld] with row stride %lld, expected [%lld, %lld]",
				   operation, what, (long long) m.rows, (long long) m.cols, (long long) m.ld,
				   (long long) rows, (long long) cols);
}

ft_status
ft_bad_types(const char *operation, ft_dtype a, ft_dtype b)
{
	return ft_fail(FT_UNSUPPORTED, "%s: types %s and %s are not supported together", operation,
				   ft_dtype_get(a)->name, ft_dtype_get(b)->name);
}

ft_status
ft_check_shape(const char *operation, const char *what, ft_mat m, int64_t rows, int64_t cols)
{
	if (m.rows != rows || m.cols != cols || m.ld < cols)
		return ft_bad_shape(operation, what, m, rows, cols);
	return FT_OK;
}

ft_status
ft_check_float(const char *operation, ft_mat m)
{
	return ft_is_float(m.dtype) ? FT_OK : ft_bad_types(operation, m.dtype, FT_F32);
}

ft_status
ft_check_f32(const char *operation, ft_mat m)
{
	return m.dtype == FT_F32 ? FT_OK : ft_bad_types(operation, m.dtype, FT_F32);
}

static const ft_ops cpu_ops = {
	.version = FT_OPS_VERSION,
	.name = "cpu",
	.device_open = device_open,
	.device_close = device_close,
	.device_info = device_info,
	.mem_alloc = ft_cpu_mem_alloc,
	.mem_free = ft_cpu_mem_free,
	.stream_create = stream_create,
	.stream_destroy = stream_destroy,
	.stream_synchronize = stream_synchronize,
	.copy_to_device = ft_cpu_copy,
	.copy_to_host = ft_cpu_copy,
	.copy = ft_cpu_copy,
	.zero = ft_cpu_zero,
	.weight_create = ft_cpu_weight_create,
	.weight_view = ft_cpu_weight_view,
	.weight_free = ft_cpu_weight_free,
	.weight_bytes = ft_cpu_weight_bytes,
	.dequantise = ft_cpu_dequantise,
	.linear = ft_cpu_linear,
	.linear_grad_input = ft_cpu_linear_grad_input,
	.matmul = ft_cpu_matmul,
	.lora = ft_cpu_lora,
	.embed = ft_cpu_embed,
	.gather_rows = ft_cpu_gather_rows,
	.scatter_add_rows = ft_cpu_scatter_add_rows,
	.convert = ft_cpu_convert,
	.add = ft_cpu_add,
	.add_bias = ft_cpu_add_bias,
	.sum_rows = ft_cpu_sum_rows,
	.embed_grad = ft_cpu_embed_grad,
	.rmsnorm = ft_cpu_rmsnorm,
	.rmsnorm_grad = ft_cpu_rmsnorm_grad,
	.head_norm = ft_cpu_head_norm,
	.head_norm_grad = ft_cpu_head_norm_grad,
	.rope = ft_cpu_rope,
	.swiglu = ft_cpu_swiglu,
	.swiglu_grad = ft_cpu_swiglu_grad,
	.dropout = ft_cpu_dropout,
	.attention = ft_cpu_attention,
	.attention_grad = ft_cpu_attention_grad,
	.kv_store = ft_cpu_kv_store,
	.attention_paged = ft_cpu_attention_paged,
	.route = ft_cpu_route,
	.route_grad = ft_cpu_route_grad,
	.group_rows = ft_cpu_group_rows,
	.linear_experts = ft_cpu_linear_experts,
	.combine_rows = ft_cpu_combine_rows,
	.weigh_rows_grad = ft_cpu_weigh_rows_grad,
	.cross_entropy = ft_cpu_cross_entropy,
	.sum_squares = ft_cpu_sum_squares,
	.adamw = ft_cpu_adamw,
	.adamw_8bit = ft_cpu_adamw_8bit,
	.sample = ft_cpu_sample,
};

const ft_ops *
ft_cpu_ops(void)
{
	return &cpu_ops;
}
