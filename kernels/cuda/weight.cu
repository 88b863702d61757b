/*
 * weight.cu: weights on the device.
 *
 * FT_USE_TRAIN keeps one dense matrix, bf16 or (reference numerics) f32, for the
 * library's products.  FT_USE_SERVE and FT_USE_EMBED keep the stored type, packed
 * (packed.cuh).  A part whose stored type is that of the dense matrix is not
 * held twice: its packed form is a view of the dense rows.
 *
 * FT_USE_DEQUANTISE keeps the parts as they come, which are NF4 or a file's blocks.
 *
 * Each part travels as it is in the file and is unpacked on the device, so the
 * host never holds a larger copy of it.
 */
#include "packed.cuh"

#include <stdlib.h>

#define THREADS 128

/* --- packing on the device --- */

template <ft_dtype TYPE>
__device__ static void
pack_scales(const ft_packed &part, int64_t to, const uint8_t *row, int64_t unit)
{
	if constexpr (is_block_of_256(TYPE))
	{
		const uint8_t *block = row + unit / 8 * raw_block_256<TYPE>::bytes;
		uint16_t scales = raw_scales_256<TYPE>(block, (int) (unit % 8));

		if constexpr (TYPE == FT_Q6_K)
			((uint32_t *) part.scales)[to] = raw_factors_256<TYPE>(block) | (uint32_t) scales << 16;
		else
		{
			((uint16_t *) part.scales)[to] = scales;
			if (unit % 8 == 0)
				((uint32_t *) part.blocks)[to / 8] = raw_factors_256<TYPE>(block);
		}
	}
	else
	{
		const uint8_t *block = row + unit * raw_block<TYPE>::bytes;

		if constexpr (raw_block<TYPE>::has_min)
			((uint32_t *) part.scales)[to] = raw_u16(block) | (uint32_t) raw_u16(block + 2) << 16;
		else
			((uint16_t *) part.scales)[to] = raw_u16(block);
	}
}

/* A thread a unit. */
template <ft_dtype TYPE>
static __global__ void
pack_blocks(ft_packed part, const uint8_t *raw, int64_t row_bytes)
{
	int64_t to = blockIdx.x * (int64_t) THREADS + threadIdx.x;
	int64_t unit = to % part.units;
	const uint8_t *row = raw + to / part.units * row_bytes;
	uint32_t quants[8] = {};
	uint32_t high[2] = {};

	if (to >= part.rows * part.units)
		return;
#pragma unroll
	for (int j = 0; j < FT_UNIT; j++)
	{
		int code = raw_code<TYPE>(row, unit * FT_UNIT + j);

		if constexpr (TYPE == FT_Q8_0)
			quants[j / 4] |= (uint32_t) (code & 255) << (j % 4 * 8);
		else if constexpr (ft_packed_quant_bytes(TYPE) == 8)
			quants[j / 16] |= (uint32_t) (code & 3) << (j % 16 * 2);
		else
			quants[j % 16 / 4] |= (uint32_t) (code & 15) << (j % 4 * 8 + j / 16 * 4);
		if constexpr (TYPE == FT_Q6_K)
			high[j / 16] |= (uint32_t) (code >> 4) << (j % 16 * 2);
		else if constexpr (ft_packed_high_bytes(TYPE) > 0)
			high[0] |= (uint32_t) (code >> (ft_packed_quant_bytes(TYPE) == 8 ? 2 : 4)) << j;
	}
	for (int i = 0; i < ft_packed_quant_bytes(TYPE) / 4; i++)
		((uint32_t *) part.quants)[to * (ft_packed_quant_bytes(TYPE) / 4) + i] = quants[i];
	for (int i = 0; i < ft_packed_high_bytes(TYPE) / 4; i++)
		((uint32_t *) part.high)[to * (ft_packed_high_bytes(TYPE) / 4) + i] = high[i];
	pack_scales<TYPE>(part, to, row, unit);
}

static ft_status
pack(ft_stream *s, const ft_packed *part, ft_mat raw)
{
	int64_t row_bytes = ft_row_bytes(raw.dtype, raw.cols);
	unsigned blocks = (unsigned) ft_divide_up(part->rows * part->units, THREADS);

	return with_stored("weight", raw.dtype,
					   [&](auto stored)
					   {
						   constexpr ft_dtype type = decltype(stored)::type;

						   if constexpr (type == FT_F32 || type == FT_F16 || type == FT_BF16)
						   {
							   size_t size = ft_type_size(type);
							   size_t pitch = (size_t) part->units * FT_UNIT * size;

							   return ft_cuda_check(
								   cudaMemcpy2DAsync(part->quants, pitch, raw.data,
													 (size_t) raw.cols * size,
													 (size_t) raw.cols * size, (size_t) raw.rows,
													 cudaMemcpyDeviceToDevice, s->stream),
								   "laying out a weight");
						   }
						   else
						   {
							   FT_LAUNCH((pack_blocks<type>), blocks, THREADS, 0, s->stream, *part,
										 (const uint8_t *) raw.data, row_bytes);
							   return ft_cuda_launched("packing a weight");
						   }
					   });
}

/* --- planning --- */

static size_t
aligned(size_t bytes)
{
	return (bytes + 255) / 256 * 256;
}

static ft_status
check_parts(const ft_mat *parts, int n, unsigned use)
{
	if (n < 1)
		return ft_fail(FT_INVALID, "a weight of %d parts", n);
	for (int i = 0; i < n; i++)
	{
		bool nf4 = parts[i].dtype == FT_NF4 && use == FT_USE_DEQUANTISE;

		if (!nf4 && (parts[i].dtype == FT_I32 || ft_dtype_get(parts[i].dtype)->block_values == 0))
			return ft_fail(FT_UNSUPPORTED, "a weight of type %s",
						   ft_dtype_get(parts[i].dtype)->name);
		if (!nf4 && ft_row_bytes(parts[i].dtype, parts[i].cols) <= 0)
			return ft_fail(FT_INVALID, "a weight with rows of %lld values of type %s",
						   (long long) parts[i].cols, ft_dtype_get(parts[i].dtype)->name);
		if (parts[i].cols != parts[0].cols || parts[i].ld != parts[i].cols || parts[i].rows < 1)
			return ft_fail(FT_INVALID,
						   "part %d of a weight is [%lld, %lld], the first has %lld "
						   "columns",
						   i, (long long) parts[i].rows, (long long) parts[i].cols,
						   (long long) parts[0].cols);
	}
	return FT_OK;
}

static bool
is_view_of_dense(const ft_weight *w, ft_dtype stored)
{
	return (w->use & FT_USE_TRAIN) != 0 && stored == w->dense_type;
}

/* Give the arrays of packed parts their places behind `base`, and return their bytes. */
static size_t
place_parts(ft_weight *w, const ft_mat *parts, uint8_t *base)
{
	int64_t row = 0;
	size_t at = 0;

	for (int i = 0; i < w->n_parts; i++)
	{
		ft_packed *part = &w->parts[i];
		ft_dtype type = parts[i].dtype;
		size_t units;

		part->dtype = type;
		part->first = row;
		part->rows = parts[i].rows;
		part->units = w->pitch / FT_UNIT;
		units = (size_t) (part->rows * part->units);
		row += parts[i].rows;
		if (is_view_of_dense(w, type))
		{
			part->quants =
				(uint8_t *) w->dense + (size_t) (part->first * w->pitch) * ft_type_size(type);
			continue;
		}
		part->quants = base + at;
		at += aligned(units * ft_packed_quant_bytes(type));
		part->high = base + at;
		at += aligned(units * ft_packed_high_bytes(type));
		part->scales = base + at;
		at += aligned(units * ft_packed_scale_bytes(type));
		part->blocks = base + at;
		at += aligned(units / 8 * ft_packed_block_bytes(type));
	}
	return at;
}

static size_t
part_bytes(ft_mat part)
{
	if (part.dtype == FT_NF4)
		return (size_t) ft_nf4_bytes(part.rows * part.cols);
	return (size_t) (part.rows * ft_row_bytes(part.dtype, part.cols));
}

/* Memory for the parts as they are; its bytes. */
static ft_status
allocate_stored(ft_weight *w, const ft_mat *parts, size_t *bytes)
{
	size_t at = 0;

	w->stored = (ft_mat *) calloc((size_t) w->n_parts, sizeof *w->stored);
	if (w->stored == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	for (int i = 0; i < w->n_parts; i++)
		*bytes += aligned(part_bytes(parts[i]));
	FT_TRY(ft_cuda_mem_alloc(w->device, FT_MEM_DEVICE, *bytes, &w->raw));
	for (int i = 0; i < w->n_parts; i++)
	{
		w->stored[i] = parts[i];
		w->stored[i].data = (uint8_t *) w->raw + at;
		at += aligned(part_bytes(parts[i]));
	}
	return FT_OK;
}

static ft_status
allocate(ft_weight *w, const ft_mat *parts)
{
	size_t dense = 0;
	size_t packed = 0;
	size_t stored = 0;

	if (w->use & FT_USE_TRAIN)
	{
		dense = (size_t) (w->rows * w->pitch) * ft_type_size(w->dense_type);
		FT_TRY(ft_cuda_mem_alloc(w->device, FT_MEM_DEVICE, dense, &w->dense));
	}
	if (w->use & (FT_USE_SERVE | FT_USE_EMBED))
	{
		w->parts = (ft_packed *) calloc((size_t) w->n_parts, sizeof *w->parts);
		if (w->parts == NULL)
			return ft_fail(FT_NO_MEMORY, "out of memory");
		packed = place_parts(w, parts, NULL);
		if (packed > 0)
			FT_TRY(ft_cuda_mem_alloc(w->device, FT_MEM_DEVICE, packed, &w->packed));
		place_parts(w, parts, (uint8_t *) w->packed);
	}
	if (w->use & FT_USE_DEQUANTISE)
		FT_TRY(allocate_stored(w, parts, &stored));
	w->bytes = (int64_t) (dense + packed + stored);
	return FT_OK;
}

/* --- filling --- */

/* From the raw part on the device into what the weight keeps of it. */
static ft_status
unpack_part(ft_stream *s, ft_weight *w, int i, int64_t first, ft_mat raw)
{
	if (w->use & FT_USE_TRAIN)
	{
		ft_mat rows = {(uint8_t *) w->dense +
						   (size_t) (first * w->pitch) * ft_type_size(w->dense_type),
					   w->dense_type, raw.rows, raw.cols, w->pitch};

		FT_TRY(ft_cuda_convert(s, rows, raw));
	}
	if (w->parts != NULL && !is_view_of_dense(w, raw.dtype))
		FT_TRY(pack(s, &w->parts[i], raw));
	return FT_OK;
}

/* One part onto the device: to stay there as it is, or to be unpacked from there. */
static ft_status
fill_part(ft_stream *s, ft_weight *w, const ft_mat *parts, int i, int64_t first)
{
	bool stays = w->stored != NULL;
	ft_mat raw = stays ? w->stored[i] : parts[i];
	ft_status status = FT_OK;

	if (!stays)
		FT_TRY(ft_cuda_mem_alloc(w->device, FT_MEM_DEVICE, part_bytes(raw), &raw.data));
	status = ft_cuda_check(cudaMemcpyAsync(raw.data, parts[i].data, part_bytes(raw),
										   cudaMemcpyHostToDevice, s->stream),
						   "copying a weight to the device");
	if (status == FT_OK)
		status = unpack_part(s, w, i, first, raw);
	if (status == FT_OK)
		status = ft_cuda_stream_synchronize(s);
	if (!stays)
		ft_cuda_mem_free(w->device, FT_MEM_DEVICE, raw.data);
	return status;
}

static ft_status
fill(ft_weight *w, const ft_mat *parts)
{
	/* Loading needs a queue, but none of what else a stream of the engine holds. */
	ft_stream s = {};
	int64_t first = 0;
	ft_status status;

	s.device = w->device;
	FT_TRY(ft_cuda_check(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking),
						 "cudaStreamCreate"));
	status = FT_OK;
	for (int i = 0; i < w->n_parts && status == FT_OK; i++)
	{
		status = fill_part(&s, w, parts, i, first);
		first += parts[i].rows;
	}
	cudaStreamDestroy(s.stream);
	return status;
}

ft_status
ft_cuda_weight_create(ft_device *device, const ft_mat *parts, int n_parts, unsigned use,
					  ft_weight **result)
{
	ft_weight *w;
	ft_status status;

	FT_TRY(check_parts(parts, n_parts, use));
	if (use == 0)
		return ft_fail(FT_INVALID, "a weight without a use");
	FT_TRY(ft_cuda_enter_device(device));
	w = (ft_weight *) calloc(1, sizeof *w);
	if (w == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	w->device = device;
	w->cols = parts[0].cols;
	for (int i = 0; i < n_parts; i++)
		w->rows += parts[i].rows;
	w->pitch = ft_divide_up(w->cols, FT_UNIT) * FT_UNIT;
	w->use = use;
	w->dense_type = device->numerics == FT_NUMERICS_FAST ? FT_BF16 : FT_F32;
	w->n_parts = n_parts;
	status = allocate(w, parts);
	if (status == FT_OK)
		status = fill(w, parts);
	if (status != FT_OK)
	{
		ft_cuda_weight_free(w);
		return status;
	}
	*result = w;
	return FT_OK;
}

ft_status
ft_cuda_weight_view(ft_device *device, ft_mat matrix, ft_weight **result)
{
	ft_weight *w;

	if (matrix.dtype != FT_F32 && matrix.dtype != FT_BF16)
		return ft_cuda_unsupported("weight_view", matrix.dtype, FT_F32);
	if (matrix.rows < 0 || matrix.cols < 1 || matrix.ld != matrix.cols)
		return ft_fail(FT_INVALID, "weight_view: the matrix is [%lld, %lld] with row stride %lld",
					   (long long) matrix.rows, (long long) matrix.cols, (long long) matrix.ld);
	w = (ft_weight *) calloc(1, sizeof *w);
	if (w == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	w->device = device;
	w->rows = matrix.rows;
	w->cols = matrix.cols;
	w->pitch = matrix.ld;
	w->use = FT_USE_TRAIN | FT_USE_EMBED;
	w->dense = matrix.data;
	w->is_view = true;
	w->dense_type = matrix.dtype;
	*result = w;
	return FT_OK;
}

void
ft_cuda_weight_free(ft_weight *w)
{
	if (w == NULL)
		return;
	if (!w->is_view)
		ft_cuda_mem_free(w->device, FT_MEM_DEVICE, w->dense);
	ft_cuda_mem_free(w->device, FT_MEM_DEVICE, w->packed);
	ft_cuda_mem_free(w->device, FT_MEM_DEVICE, w->raw);
	free(w->parts);
	free(w->stored);
	free(w);
}

int64_t
ft_cuda_weight_bytes(const ft_weight *w)
{
	return w->bytes;
}
