/*
 * lora.c: the LoRA side of the linear layers, forward and backward.
 */
#include "lora.h"

#include "buffer.h"
#include "random.h"

#include <stdlib.h>

static const struct
{
	int first;
	int n;
} group_targets[FT_GROUP_COUNT] = {
	[FT_GROUP_QKV] = {FT_Q_PROJ, 3},
	[FT_GROUP_OUT] = {FT_O_PROJ, 1},
	[FT_GROUP_GATE_UP] = {FT_GATE_PROJ, 2},
	[FT_GROUP_DOWN] = {FT_DOWN_PROJ, 1},
};

static void
find_members(const ft_config *config, unsigned targets, ft_lora_group group, ft_lora_members *m)
{
	int column = 0;

	*m = (ft_lora_members){0};
	for (int i = 0; i < group_targets[group].n; i++)
	{
		int target = group_targets[group].first + i;
		int in;
		int out;

		ft_target_shape(config, (ft_target) target, &in, &out);
		m->in = in;
		if (targets & (1u << target))
		{
			m->target[m->n] = target;
			m->column[m->n] = column;
			m->out[m->n] = out;
			m->n++;
		}
		column += out;
	}
}

/* Give each operand its place; all start on a 64-byte line. */
static void
place_operands(ft_lora *lora)
{
	int rank = lora->adapter->rank;
	int64_t at = 0;

	for (int layer = 0; layer < lora->adapter->layers; layer++)
	{
		for (int g = 0; g < FT_GROUP_COUNT; g++)
		{
			const ft_lora_members *m = &lora->members[g];

			lora->a_at[layer * FT_GROUP_COUNT + g] = at;
			at += ((int64_t) m->n * rank * m->in + 31) / 32 * 32;
			for (int i = 0; i < m->n; i++)
			{
				lora->b_at[layer * FT_TARGET_COUNT + m->target[i]] = at;
				at += ((int64_t) m->out[i] * rank + 31) / 32 * 32;
			}
		}
	}
	lora->n_operands = at;
}

static ft_status
plan(ft_lora *lora, int64_t capacity, ft_arena *arena)
{
	int64_t widest = 0;
	int64_t widest_in = 0;
	int64_t largest = 0;

	for (int g = 0; g < FT_GROUP_COUNT; g++)
	{
		int64_t columns = ft_lora_columns(lora, (ft_lora_group) g);

		if (columns > widest)
			widest = columns;
		if (columns * lora->members[g].in > largest)
			largest = columns * lora->members[g].in;
		if (columns > 0 && lora->members[g].in > widest_in)
			widest_in = lora->members[g].in;
	}
	FT_TRY(ft_arena_want(arena, &lora->operands, lora->n_operands, lora->compute));
	FT_TRY(ft_arena_want(arena, &lora->gradient, lora->adapter->n, FT_F32));
	FT_TRY(ft_arena_want(arena, &lora->da, largest, FT_F32));
	FT_TRY(ft_arena_want(arena, &lora->product, capacity * widest, FT_F32));
	if (lora->compute != FT_F32)
		FT_TRY(ft_arena_want(arena, &lora->du, capacity * widest, lora->compute));
	if (lora->adapter->dropout > 0)
		FT_TRY(ft_arena_want(arena, &lora->dropped, capacity * widest_in, FT_F32));
	return FT_OK;
}

ft_status
ft_lora_create(const ft_model *model, const ft_adapter *adapter, int64_t capacity, ft_arena *arena,
			   ft_lora **result)
{
	size_t layers = (size_t) adapter->layers;
	ft_lora *lora;
	ft_status status;

	FT_TRY(ft_alloc((void **) &lora, 1, sizeof *lora));
	lora->ops = model->ops;
	lora->adapter = adapter;
	lora->compute = model->compute;
	for (int g = 0; g < FT_GROUP_COUNT; g++)
		find_members(&model->config, adapter->targets, (ft_lora_group) g, &lora->members[g]);
	status = ft_alloc((void **) &lora->a_at, layers * FT_GROUP_COUNT, sizeof(int64_t));
	if (status == FT_OK)
		status = ft_alloc((void **) &lora->b_at, layers * FT_TARGET_COUNT, sizeof(int64_t));
	if (status == FT_OK)
	{
		place_operands(lora);
		status = plan(lora, capacity, arena);
	}
	if (status != FT_OK)
	{
		ft_lora_free(lora);
		return status;
	}
	*result = lora;
	return FT_OK;
}

void
ft_lora_free(ft_lora *lora)
{
	if (lora == NULL)
		return;
	free(lora->a_at);
	free(lora->b_at);
	free(lora);
}

int64_t
ft_lora_columns(const ft_lora *lora, ft_lora_group group)
{
	return (int64_t) lora->members[group].n * lora->adapter->rank;
}

/* --- operands --- */

static ft_mat
operand(const ft_lora *lora, int64_t at, int64_t rows, int64_t cols)
{
	size_t size = lora->compute == FT_F32 ? 4 : 2;

	return ft_mat_make((char *) lora->operands + (size_t) at * size, lora->compute, rows, cols);
}

/* A group's stacked A, [n·R, in]. */
static ft_mat
stacked_a(const ft_lora *lora, int layer, ft_lora_group group)
{
	return operand(lora, lora->a_at[layer * FT_GROUP_COUNT + group], ft_lora_columns(lora, group),
				   lora->members[group].in);
}

static ft_mat
member_b(const ft_lora *lora, int layer, int target, int out)
{
	return operand(lora, lora->b_at[layer * FT_TARGET_COUNT + target], out, lora->adapter->rank);
}

static ft_status
prepare_group(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group)
{
	const ft_adapter *adapter = lora->adapter;
	const ft_lora_members *m = &lora->members[group];
	int rank = adapter->rank;

	for (int i = 0; i < m->n; i++)
	{
		int slot = layer * FT_TARGET_COUNT + m->target[i];
		ft_mat a = ft_mat_make(adapter->values + adapter->a_at[slot], FT_F32, rank, m->in);
		ft_mat b = ft_mat_make(adapter->values + adapter->b_at[slot], FT_F32, m->out[i], rank);

		FT_TRY(lora->ops->convert(
			stream, ft_mat_rows(stacked_a(lora, layer, group), (int64_t) i * rank, rank), a));
		FT_TRY(lora->ops->convert(stream, member_b(lora, layer, m->target[i], m->out[i]), b));
	}
	return FT_OK;
}

ft_status
ft_lora_prepare(ft_lora *lora, ft_stream *stream)
{
	if (lora->compute == FT_F32)
		lora->du = lora->product;
	for (int layer = 0; layer < lora->adapter->layers; layer++)
	{
		for (int g = 0; g < FT_GROUP_COUNT; g++)
			FT_TRY(prepare_group(lora, stream, layer, (ft_lora_group) g));
	}
	return FT_OK;
}

ft_status
ft_lora_zero_gradient(ft_lora *lora, ft_stream *stream)
{
	return lora->ops->zero(stream, lora->gradient, (size_t) lora->adapter->n * sizeof(float));
}

/* --- dropout --- */

void
ft_lora_set_dropout(ft_lora *lora, uint64_t seed, int64_t step)
{
	uint32_t words[4];

	ft_philox(seed, FT_STREAM_DROPOUT, (uint64_t) step, words);
	lora->dropout =
		(ft_dropout){.p = lora->adapter->dropout, .seed = (uint64_t) words[1] << 32 | words[0]};
}

void
ft_lora_begin_dropout(ft_lora *lora, const int32_t *positions, const int32_t *documents)
{
	lora->dropping = lora->adapter->dropout > 0;
	lora->dropout.positions = positions;
	lora->dropout.documents = documents;
}

void
ft_lora_end_dropout(ft_lora *lora)
{
	lora->dropping = false;
}

/* What a target reads. */
static ft_status
drop_input(ft_lora *lora, ft_stream *stream, int layer, int target, ft_mat x, ft_mat *dropped)
{
	*dropped = ft_mat_make(lora->dropped, lora->compute, x.rows, x.cols);
	lora->dropout.slot = (uint32_t) (layer * FT_TARGET_COUNT + target);
	return lora->ops->dropout(stream, *dropped, x, &lora->dropout, 0.0f);
}

/* product = u before it is rounded: with dropout a product for each target. */
static ft_status
dropped_product(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group, ft_mat product,
				ft_mat x)
{
	const ft_lora_members *m = &lora->members[group];
	ft_mat a = stacked_a(lora, layer, group);
	int rank = lora->adapter->rank;

	for (int i = 0; i < m->n; i++)
	{
		int64_t first = (int64_t) i * rank;
		ft_mat dropped;

		FT_TRY(drop_input(lora, stream, layer, m->target[i], x, &dropped));
		FT_TRY(lora->ops->matmul(stream, ft_mat_cols(product, first, rank), dropped, false,
								 ft_mat_rows(a, first, rank), true, 1.0f, 0.0f));
	}
	return FT_OK;
}

/* The gradients of A and of x from du. */
static ft_status
dropped_backward(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group, ft_mat dx,
				 ft_mat du, ft_mat x)
{
	const ft_lora_members *m = &lora->members[group];
	const ft_adapter *adapter = lora->adapter;
	ft_mat a = stacked_a(lora, layer, group);
	int rank = adapter->rank;

	for (int i = 0; i < m->n; i++)
	{
		int64_t first = (int64_t) i * rank;
		int64_t at = adapter->a_at[layer * FT_TARGET_COUNT + m->target[i]];
		ft_mat du_i = ft_mat_cols(du, first, rank);
		ft_mat dropped;
		ft_mat back;

		FT_TRY(drop_input(lora, stream, layer, m->target[i], x, &dropped));
		FT_TRY(lora->ops->matmul(stream, ft_mat_make(lora->gradient + at, FT_F32, rank, m->in),
								 du_i, true, dropped, false, 1.0f, 1.0f));
		if (dx.data == NULL)
			continue;
		back = ft_mat_make(lora->dropped, FT_F32, x.rows, x.cols);
		FT_TRY(lora->ops->matmul(stream, back, du_i, false, ft_mat_rows(a, first, rank), false,
								 1.0f, 0.0f));
		FT_TRY(lora->ops->dropout(stream, dx, back, &lora->dropout, 1.0f));
	}
	return FT_OK;
}

/* --- forward and backward --- */

/* Round the f32 product into `to`, unless it stands there already. */
static ft_status
to_compute(const ft_lora *lora, ft_stream *stream, ft_mat to, ft_mat product)
{
	if (to.data == product.data)
		return FT_OK;
	return lora->ops->convert(stream, to, product);
}

ft_status
ft_lora_forward(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group, ft_mat y,
				ft_mat x, ft_mat u)
{
	const ft_lora_members *m = &lora->members[group];
	int rank = lora->adapter->rank;
	ft_mat product = u;

	if (m->n == 0)
		return FT_OK;
	if (lora->compute != FT_F32)
		product = ft_mat_make(lora->product, FT_F32, x.rows, ft_lora_columns(lora, group));
	if (lora->dropping)
		FT_TRY(dropped_product(lora, stream, layer, group, product, x));
	else
		FT_TRY(lora->ops->matmul(stream, product, x, false, stacked_a(lora, layer, group), true,
								 1.0f, 0.0f));
	FT_TRY(to_compute(lora, stream, u, product));
	for (int i = 0; i < m->n; i++)
	{
		FT_TRY(lora->ops->matmul(stream, ft_mat_cols(y, m->column[i], m->out[i]),
								 ft_mat_cols(u, (int64_t) i * rank, rank), false,
								 member_b(lora, layer, m->target[i], m->out[i]), true,
								 lora->adapter->scale, 1.0f));
	}
	return FT_OK;
}

/* dA of all members is one product; its rows then go to where the adapter keeps each A. */
static ft_status
add_da(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group, ft_mat du, ft_mat x)
{
	const ft_lora_members *m = &lora->members[group];
	const ft_adapter *adapter = lora->adapter;
	int rank = adapter->rank;
	ft_mat da = ft_mat_make(lora->da, FT_F32, (int64_t) m->n * rank, m->in);

	FT_TRY(lora->ops->matmul(stream, da, du, true, x, false, 1.0f, 0.0f));
	for (int i = 0; i < m->n; i++)
	{
		int64_t at = adapter->a_at[layer * FT_TARGET_COUNT + m->target[i]];

		FT_TRY(lora->ops->add(stream, ft_mat_make(lora->gradient + at, FT_F32, rank, m->in),
							  ft_mat_rows(da, (int64_t) i * rank, rank), 1.0f));
	}
	return FT_OK;
}

ft_status
ft_lora_backward(ft_lora *lora, ft_stream *stream, int layer, ft_lora_group group, ft_mat dx,
				 ft_mat dy, ft_mat x, ft_mat u)
{
	const ft_lora_members *m = &lora->members[group];
	const ft_adapter *adapter = lora->adapter;
	int rank = adapter->rank;
	int64_t columns = ft_lora_columns(lora, group);
	ft_mat product = ft_mat_make(lora->product, FT_F32, dy.rows, columns);
	ft_mat du = ft_mat_make(lora->du, lora->compute, dy.rows, columns);

	if (m->n == 0)
		return FT_OK;
	for (int i = 0; i < m->n; i++)
	{
		int slot = layer * FT_TARGET_COUNT + m->target[i];
		ft_mat dy_i = ft_mat_cols(dy, m->column[i], m->out[i]);
		ft_mat db = ft_mat_make(lora->gradient + adapter->b_at[slot], FT_F32, m->out[i], rank);

		FT_TRY(lora->ops->matmul(stream, ft_mat_cols(product, (int64_t) i * rank, rank), dy_i,
								 false, member_b(lora, layer, m->target[i], m->out[i]), false,
								 adapter->scale, 0.0f));
		FT_TRY(lora->ops->matmul(stream, db, dy_i, true, ft_mat_cols(u, (int64_t) i * rank, rank),
								 false, adapter->scale, 1.0f));
	}
	FT_TRY(to_compute(lora, stream, du, product));
	if (lora->dropping)
		return dropped_backward(lora, stream, layer, group, dx, du, x);
	FT_TRY(add_da(lora, stream, layer, group, du, x));
	if (dx.data != NULL)
		FT_TRY(lora->ops->matmul(stream, dx, du, false, stacked_a(lora, layer, group), false, 1.0f,
								 1.0f));
	return FT_OK;
}
