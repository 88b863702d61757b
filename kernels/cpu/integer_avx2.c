/*
 * integer_avx2.c: products in whole numbers for AVX2.
 */
#define INTEGER_NAME ft_integer_avx2
#define INTEGER_LABEL "avx2"
#include "integer_kernel.h"
