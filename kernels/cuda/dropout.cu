/*
 * dropout.cu: dropout, whose mask is made anew by whoever needs it.
 *
 * The words are those of Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel
 * Random Numbers: As Easy as 1, 2, 3", SC 2011).  A thread makes a block's four
 * words and handles the four columns that they are for.
 */
#include "intrinsics.cuh"

#define THREADS 128
#define ROUNDS 10

__device__ static void
philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
	for (int i = 0; i < ROUNDS; i++)
	{
		uint64_t p0 = (uint64_t) 0xD2511F53u * c[0];
		uint64_t p1 = (uint64_t) 0xCD9E8D57u * c[2];

		c[0] = (uint32_t) (p1 >> 32) ^ c[1] ^ k0;
		c[1] = (uint32_t) p1;
		c[2] = (uint32_t) (p0 >> 32) ^ c[3] ^ k1;
		c[3] = (uint32_t) p0;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
}

template <typename Y, typename X>
static __global__ void
drop(view<Y> y, view<const X> x, const int32_t *positions, const int32_t *documents, uint32_t slot,
	 uint64_t seed, uint32_t threshold, float scale, bool add)
{
	int64_t block = blockIdx.x * (int64_t) THREADS + threadIdx.x;
	int64_t first = block / 16 * 64 + block % 16;

	for (int64_t i = blockIdx.y; i < x.rows && first < x.cols; i += gridDim.y)
	{
		uint32_t words[4] = {(uint32_t) block, (uint32_t) positions[i], (uint32_t) documents[i],
							 slot};

		philox(words, (uint32_t) seed, (uint32_t) (seed >> 32));
		for (int w = 0; w < 4; w++)
		{
			int64_t j = first + 16 * w;
			float kept;

			if (j >= x.cols)
				break;
			kept = words[w] >= threshold ? value(x.row(i)[j]) * scale : 0.0f;
			set_value(y.row(i)[j], add ? value(y.row(i)[j]) + kept : kept);
		}
	}
}

ft_status
ft_cuda_dropout(ft_stream *s, ft_mat y, ft_mat x, const ft_dropout *settings, float beta)
{
	int64_t blocks = ft_divide_up(x.cols, 64) * 16;
	dim3 grid((unsigned) ft_divide_up(blocks, THREADS),
			  (unsigned) ft_min64(x.rows, FT_MAX_GRID_Y));
	uint32_t threshold = ft_dropout_threshold(settings->p);
	float scale = (float) (1 / (1 - settings->p));
	bool add = beta != 0;

	FT_TRY(ft_cuda_enter(s));
	FT_TRY(ft_cuda_shape("dropout", "y", y, x.rows, x.cols));
	if (add)
		FT_TRY(ft_cuda_type("dropout", "y", y, FT_F32));
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_types("dropout", y.dtype, x.dtype,
					  [&](auto ty, auto tx)
					  {
						  typedef typename decltype(ty)::type Y;
						  typedef typename decltype(tx)::type X;

						  FT_LAUNCH((drop<Y, X>), grid, THREADS, 0, s->stream, view_of<Y>(y),
									view_of<const X>(x), settings->positions, settings->documents,
									settings->slot, settings->seed, threshold, scale, add);
						  return ft_cuda_launched("dropout");
					  });
}
