/*
 * integer_avxvnni.c: products in whole numbers for AVX2 with AVX-VNNI.
 */
#define INTEGER_NAME ft_integer_avxvnni
#define INTEGER_LABEL "avxvnni"
#include "integer_kernel.h"
