/*
 * integer_avx512vnni.c: products in whole numbers for AVX-512 VNNI.
 */
#define INTEGER_NAME ft_integer_avx512vnni
#define INTEGER_LABEL "avx512vnni"
#include "integer_kernel.h"
