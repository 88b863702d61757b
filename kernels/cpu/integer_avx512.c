/*
 * integer_avx512.c: products in whole numbers for AVX-512 without VNNI.
 */
#define INTEGER_NAME ft_integer_avx512
#define INTEGER_LABEL "avx512"
#include "integer_kernel.h"
