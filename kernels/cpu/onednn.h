/*
 * onednn.h: oneDNN's C functions, found at run time.
 *
 * libdnnl is a 40 MB shared object that only training in bf16 needs, so it is
 * opened with the first such product and never linked.
 */
#ifndef FT_CPU_ONEDNN_H
#define FT_CPU_ONEDNN_H

#include "cpu.h"

#if defined(__has_include)
#if __has_include(<oneapi/dnnl/dnnl.h>)
#include <oneapi/dnnl/dnnl.h>
#define FT_HAVE_ONEDNN 1
#endif
#endif

#ifdef FT_HAVE_ONEDNN

#define FT_ONEDNN_FUNCTIONS(X)                 \
	X(dnnl_version)                            \
	X(dnnl_engine_create)                      \
	X(dnnl_stream_create)                      \
	X(dnnl_stream_destroy)                     \
	X(dnnl_memory_desc_init_by_strides)        \
	X(dnnl_memory_desc_get_size)               \
	X(dnnl_memory_create)                      \
	X(dnnl_memory_destroy)                     \
	X(dnnl_matmul_desc_init)                   \
	X(dnnl_primitive_attr_create)              \
	X(dnnl_primitive_attr_destroy)             \
	X(dnnl_primitive_attr_set_scratchpad_mode) \
	X(dnnl_primitive_attr_set_output_scales)   \
	X(dnnl_primitive_attr_set_post_ops)        \
	X(dnnl_post_ops_create)                    \
	X(dnnl_post_ops_destroy)                   \
	X(dnnl_post_ops_append_sum)                \
	X(dnnl_primitive_desc_create)              \
	X(dnnl_primitive_desc_destroy)             \
	X(dnnl_primitive_desc_query_md)            \
	X(dnnl_primitive_create)                   \
	X(dnnl_primitive_destroy)                  \
	X(dnnl_primitive_execute)                  \
	X(dnnl_stream_wait)

typedef struct ft_onednn
{
#define FT_ONEDNN_MEMBER(name) __typeof__(&name) name;
	FT_ONEDNN_FUNCTIONS(FT_ONEDNN_MEMBER)
#undef FT_ONEDNN_MEMBER
	void (*omp_set_num_threads)(int);
	dnnl_engine_t engine;
} ft_onednn;

/* The library, opened by the first call; NULL, with one line on standard error, where it cannot be.
 */
const ft_onednn *ft_onednn_get(void);

#endif
#endif
