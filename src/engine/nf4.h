/*
 * nf4.h: quantising a matrix to NF4 (tensor.h has the format).
 *
 * Codes and scales are those of bitsandbytes' functional.quantize_4bit(…, blocksize = 64,
 * compress_statistics = True, quant_type = "nf4"), as its kernels for GPUs and for PyTorch have
 * them: a value times the reciprocal of its block's largest magnitude gets the nearest code (of
 * two equally near ones the lower), and so does a scale less the mean of all scales.  What may
 * differ is the mean's last bit, since a sum in f32 hangs on its order: here it is summed in f64,
 * and rounded once.  (Its kernel for the CPU rounds scales to bf16 before it looks for the nearest
 * code, and so takes a neighbour of it now and then.)
 */
#ifndef FT_NF4_H
#define FT_NF4_H

#include "status.h"
#include "tensor.h"

/* m: f32, f16 or bf16, contiguous; to: ft_nf4_bytes(rows · cols).  FT_CORRUPT, with its place,
 * where a value is not finite; FT_UNSUPPORTED for another type. */
ft_status ft_nf4_quantise(ft_mat m, void *to);

#endif
