/*
 * linear_packed.c: products with packed weights (pack.h), which are unpacked
 * into panels as they are needed.
 *
 * The same for serving and for training: the stored form is small to read, and
 * unpacking is little beside the arithmetic of even a dozen rows.
 */
#include "pack.h"
#include "product.h"

#include <string.h>

/* Columns of a quantised block. */
#define BLOCK 32

/* Packed bytes of columns [k0, ..) of a group. */
static const uint8_t *
packed_columns(const ft_part *part, int64_t group, int64_t k0)
{
	return part->groups + group * part->group_bytes +
		   k0 / ft_pack_columns(part->dtype) * ft_pack_block_bytes(part->dtype);
}

/* --- y = x · Wᵀ: a column of the product is a row of the weight --- */

static const ft_part *
part_of_group(const ft_weight *w, int64_t group)
{
	int i = w->n_parts - 1;

	while (group < w->parts[i].first_group)
		i--;
	return &w->parts[i];
}

/* Columns of the product are counted in packed groups, of which a part's last may be partly empty;
 * `column` and `columns` here are the tile's in that count. */
static void
fill_rows(const ft_product *p, float *panel, int64_t column, int64_t columns, int64_t k0, int64_t k)
{
	const ft_weight *w = p->context;
	int64_t first = column / FT_GROUP;
	int64_t groups = ft_divide_up(columns, FT_GROUP);

	for (int64_t g = 0; g < groups; g++)
	{
		const ft_part *part = part_of_group(w, first + g);
		int64_t group = first + g - part->first_group;
		/* then come the next columns of this group, or the first ones of the next tile's */
		const uint8_t *ahead = k0 + k < p->k ? packed_columns(part, group, k0 + k)
											 : packed_columns(part, group + groups, 0);

		p->kernels->unpack[part->dtype](panel + g * FT_PANEL_K * FT_GROUP,
										part->groups + group * part->group_bytes, k0, k, ahead);
	}
}

static void
store_groups(const ft_product *p, const float *tile, int64_t row, int64_t rows, int64_t column,
			 int64_t columns)
{
	for (int64_t g = column / FT_GROUP; g < (column + columns) / FT_GROUP; g++, tile += FT_GROUP)
	{
		const ft_part *part = part_of_group(p->context, g);
		int64_t in_part = (g - part->first_group) * FT_GROUP;
		ft_mat c = ft_mat_cols(ft_mat_rows(p->c, row, rows), part->first_row + in_part,
							   ft_min(FT_GROUP, part->rows - in_part));

		for (int64_t i = 0; i < rows; i++)
			ft_product_store_row(p, ft_at(c, i, 0), tile + i * FT_TILE_COLUMNS, p->alpha, c.cols);
	}
}

static bool
has_empty_columns(const ft_weight *w)
{
	return w->n_groups * FT_GROUP != w->rows;
}

ft_status
ft_packed_linear(ft_stream *s, ft_mat y, ft_mat x, const ft_weight *w, float beta)
{
	ft_product p = {.rows = x.rows,
					.columns = w->n_groups * FT_GROUP,
					.k = w->cols,
					.a = x,
					.c = y,
					.alpha = 1,
					.beta = beta,
					.context = w,
					.fill = fill_rows,
					.store = has_empty_columns(w) ? store_groups : NULL};

	return ft_product_run(s, &p);
}

/* --- dx = dy · W: a column of the product is a column of the weight --- */

/* Rows [first, first + n) of one packed group, columns [column, column + columns), into the panels
 * at step t. */
static void
fill_group(const ft_product *p, float *panel, const ft_part *part, int64_t group, int64_t first,
		   int64_t n, int64_t t, int64_t column, int64_t columns)
{
	_Alignas(64) float unpacked[FT_TILE_COLUMNS * FT_GROUP]; /* [column][row of the group] */
	_Alignas(64) float turned[FT_GROUP * FT_GROUP];
	/* whole blocks */
	int64_t begin = column / BLOCK * BLOCK;
	int64_t end = ft_min(ft_divide_up(column + columns, BLOCK) * BLOCK, p->columns);

	p->kernels->unpack[part->dtype](unpacked, part->groups + group * part->group_bytes, begin,
									end - begin, packed_columns(part, group + 1, begin));
	for (int64_t c = 0; c < columns; c += FT_GROUP, panel += FT_PANEL_K * FT_GROUP)
	{
		const float *from = unpacked + (column - begin + c) * FT_GROUP;
		int64_t width = ft_min(FT_GROUP, columns - c);

		if (n == FT_GROUP)
			p->kernels->fill_panel(panel + t * FT_GROUP, from, FT_GROUP, width, FT_GROUP);
		else
		{
			p->kernels->fill_panel(turned, from, FT_GROUP, width, FT_GROUP);
			memcpy(panel + t * FT_GROUP, turned + first * FT_GROUP,
				   (size_t) (n * FT_GROUP) * sizeof *panel);
		}
	}
}

static void
fill_columns(const ft_product *p, float *panel, int64_t column, int64_t columns, int64_t k0,
			 int64_t k)
{
	const ft_weight *w = p->context;

	for (int i = 0; i < w->n_parts; i++)
	{
		const ft_part *part = &w->parts[i];
		int64_t row = k0 > part->first_row ? k0 - part->first_row : 0;
		int64_t end = ft_min(part->rows, k0 + k - part->first_row);

		while (row < end)
		{
			int64_t first = row % FT_GROUP;
			int64_t n = ft_min(FT_GROUP - first, end - row);

			fill_group(p, panel, part, row / FT_GROUP, first, n, part->first_row + row - k0, column,
					   columns);
			row += n;
		}
	}
}

ft_status
ft_packed_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, const ft_weight *w, float beta)
{
	ft_product p = {.rows = dy.rows,
					.columns = w->cols,
					.k = w->rows,
					.a = dy,
					.c = dx,
					.alpha = 1,
					.beta = beta,
					.chain = FT_GRADIENT_CHAIN,
					.context = w,
					.fill = fill_columns};

	return ft_product_run(s, &p);
}
