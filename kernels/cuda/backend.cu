/*
 * backend.cu: the table of the CUDA backend, and how the shared object talks to
 * the program that opened it.
 *
 * The object exports one function.  It links the CUDA runtime statically, which
 * itself looks for the driver, and nothing else that a machine without a GPU
 * lacks.  Failures are recorded through the functions that the program hands
 * over, so that it needs to export no symbols.
 */
#include "cuda.cuh"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static const ft_backend_host *host;

static const ft_ops cuda_ops = {
	FT_OPS_VERSION,
	"cuda",
	ft_cuda_device_open,
	ft_cuda_device_close,
	ft_cuda_device_info,
	ft_cuda_mem_alloc,
	ft_cuda_mem_free,
	ft_cuda_stream_create,
	ft_cuda_stream_destroy,
	ft_cuda_stream_synchronize,
	ft_cuda_copy_to_device,
	ft_cuda_copy_to_host,
	ft_cuda_copy,
	ft_cuda_zero,
	ft_cuda_weight_create,
	ft_cuda_weight_view,
	ft_cuda_weight_free,
	ft_cuda_weight_bytes,
	ft_cuda_dequantise,
	ft_cuda_linear,
	ft_cuda_linear_grad_input,
	ft_cuda_matmul,
	ft_cuda_lora,
	ft_cuda_embed,
	ft_cuda_gather_rows,
	ft_cuda_scatter_add_rows,
	ft_cuda_convert,
	ft_cuda_add,
	ft_cuda_add_bias,
	ft_cuda_sum_rows,
	ft_cuda_embed_grad,
	ft_cuda_rmsnorm,
	ft_cuda_rmsnorm_grad,
	ft_cuda_head_norm,
	ft_cuda_head_norm_grad,
	ft_cuda_rope,
	ft_cuda_swiglu,
	ft_cuda_swiglu_grad,
	ft_cuda_dropout,
	ft_cuda_attention,
	ft_cuda_attention_grad,
	ft_cuda_kv_store,
	ft_cuda_attention_paged,
	ft_cuda_route,
	ft_cuda_route_grad,
	ft_cuda_group_rows,
	ft_cuda_linear_experts,
	ft_cuda_combine_rows,
	ft_cuda_weigh_rows_grad,
	ft_cuda_cross_entropy,
	ft_cuda_sum_squares,
	ft_cuda_adamw,
	ft_cuda_adamw_8bit,
	ft_cuda_sample,
};

extern "C" __attribute__((visibility("default"))) const ft_ops *
ft_cuda_ops(const ft_backend_host *from)
{
	if (from == NULL || from->version != FT_BACKEND_HOST_VERSION)
		return NULL;
	host = from;
	return &cuda_ops;
}

/* --- status.h, as far as a backend uses it --- */

/* status.h has a macro of that name as well. */
extern "C" ft_status(ft_fail)(ft_status code, const char *fmt, ...)
{
	char message[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(message, sizeof message, fmt, args);
	va_end(args);
	return host->fail(code, "%s", message);
}

extern "C" ft_status(ft_hint)(ft_status code, const char *fmt, ...)
{
	char hint[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(hint, sizeof hint, fmt, args);
	va_end(args);
	return host->hint(code, "%s", hint);
}

/* --- C++ without its library --- */

/* The launch code that nvcc makes has local statics, whose first use C++ guards (Itanium C++ ABI,
 * 3.3.3): the one thing of the C++ library that is needed here. */
static pthread_mutex_t guarding = PTHREAD_MUTEX_INITIALIZER;

extern "C" int
__cxa_guard_acquire(uint64_t *guard)
{
	pthread_mutex_lock(&guarding);
	if (__atomic_load_n((char *) guard, __ATOMIC_ACQUIRE) == 0)
		return 1;
	pthread_mutex_unlock(&guarding);
	return 0;
}

extern "C" void
__cxa_guard_release(uint64_t *guard)
{
	__atomic_store_n((char *) guard, 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&guarding);
}
