/*
 * kernels_avx2.c: the kernels for AVX2, FMA and F16C.
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

#define KERNELS_NAME ft_kernels_avx2
#define KERNELS_LABEL "avx2"
#include "kernels_table.h"
