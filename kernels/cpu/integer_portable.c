/*
 * integer_portable.c: products in whole numbers for portable C.
 */
#define INTEGER_NAME ft_integer_portable
#define INTEGER_LABEL "portable"
#include "integer_kernel.h"
