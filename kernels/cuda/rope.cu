/*
 * rope.cu: rotary position embedding of each head's halves (Su et al.,
 * "RoFormer", 2021, in the layout of Hugging Face's Llama).
 */
#include "intrinsics.cuh"

#define THREADS 256

/* A block a row; a thread a pair. */
template <typename T>
static __global__ void
rotate_row(view<T> x, int head_dim, const int32_t *positions, const float *cos_table,
		   const float *sin_table, float sign)
{
	int half = head_dim / 2;
	int pairs = (int) (x.cols / 2);
	T *row = x.row(blockIdx.x);
	const float *cosines = cos_table + (int64_t) positions[blockIdx.x] * half;
	const float *sines = sin_table + (int64_t) positions[blockIdx.x] * half;

	for (int p = threadIdx.x; p < pairs; p += THREADS)
	{
		int i = p % half;
		T *first = row + p / half * head_dim + i;
		T *second = first + half;
		float a = value(*first);
		float b = value(*second);
		float c = cosines[i];
		float d = sign * sines[i];

		set_value(*first, a * c - b * d);
		set_value(*second, b * c + a * d);
	}
}

ft_status
ft_cuda_rope(ft_stream *s, ft_mat x, int head_dim, const int32_t *positions, const float *cos_table,
			 const float *sin_table, bool inverse)
{
	FT_TRY(ft_cuda_enter(s));
	if (head_dim < 2 || head_dim % 2 != 0 || x.cols % head_dim != 0)
		return ft_fail(FT_INVALID, "rope: %lld columns are no whole heads of %d",
					   (long long) x.cols, head_dim);
	if (x.rows == 0 || x.cols == 0)
		return FT_OK;
	return with_type("rope", x.dtype,
					 [&](auto type)
					 {
						 typedef typename decltype(type)::type T;

						 FT_LAUNCH((rotate_row<T>), (unsigned) x.rows, THREADS, 0, s->stream,
								   view_of<T>(x), head_dim, positions, cos_table, sin_table,
								   inverse ? -1.0f : 1.0f);
						 return ft_cuda_launched("rope");
					 });
}
