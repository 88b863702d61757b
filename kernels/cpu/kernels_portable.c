/*
 * kernels_portable.c: the kernels for portable C (SSE2 on x86-64).
 */
#include "kernels.h"

#include "adamw_kernel.h"
#include "dropout_kernel.h"
#include "gemm_kernel.h"
#include "nf4_kernel.h"
#include "panel_kernel.h"
#include "rows_kernel.h"
#include "softmax_kernel.h"
#include "unpack_kernel.h"

#define KERNELS_NAME ft_kernels_portable
#define KERNELS_LABEL "portable"
#include "kernels_table.h"
