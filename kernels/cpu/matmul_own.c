/*
 * matmul_own.c: products of plain matrices by our own kernel.
 */
#include "product.h"

#include <string.h>

typedef struct plain_operand
{
	ft_mat b;
	bool tb;
} plain_operand;

/* One group of a panel from bf16, n columns wide. */
static void
fill_bf16(const plain_operand *o, float *panel, int64_t column, int64_t n, int64_t k0, int64_t k)
{
	for (int64_t t = 0; t < k; t++)
		for (int64_t j = 0; j < n; j++)
			panel[t * FT_GROUP + j] =
				ft_bf16_to_f32(*(const uint16_t *) (o->tb ? ft_at(o->b, column + j, k0 + t)
														  : ft_at(o->b, k0 + t, column + j)));
}

static void
fill_plain(const ft_product *p, float *panel, int64_t column, int64_t columns, int64_t k0,
		   int64_t k)
{
	const plain_operand *o = p->context;

	for (int64_t c = 0; c < columns; c += FT_GROUP, panel += FT_PANEL_K * FT_GROUP)
	{
		int64_t n = ft_min(FT_GROUP, columns - c);

		if (n < FT_GROUP)
			memset(panel, 0, (size_t) (k * FT_GROUP) * sizeof *panel);
		if (o->b.dtype != FT_F32)
			fill_bf16(o, panel, column + c, n, k0, k);
		else if (o->tb)
			p->kernels->fill_panel(panel, ft_at(o->b, column + c, k0), o->b.ld, n, k);
		else
			for (int64_t t = 0; t < k; t++)
				memcpy(panel + t * FT_GROUP, ft_at(o->b, k0 + t, column + c),
					   (size_t) n * sizeof *panel);
	}
}

/* A product with a few columns of a transposed a is made as its transpose: the kernel reads rows
 * of a as panels then, instead of value by value. */
#define NARROW 48

ft_status
ft_own_matmul(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha, float beta)
{
	bool turn = ta && !tb && c.cols <= NARROW && c.rows > c.cols;
	plain_operand operand = {.b = turn ? a : b, .tb = tb};
	ft_product p = {.rows = turn ? c.cols : c.rows,
					.columns = turn ? c.rows : c.cols,
					.k = ta ? a.rows : a.cols,
					.a = turn ? b : a,
					.ta = ta,
					.c = c,
					.tc = turn,
					.alpha = alpha,
					.beta = beta,
					.chain = tb ? 0 : FT_GRADIENT_CHAIN,
					.context = &operand,
					.fill = fill_plain};

	if (!tb && operand.b.dtype == FT_F32 && p.columns % FT_GROUP == 0)
	{
		p.plain = operand.b.data;
		p.plain_ld = operand.b.ld;
	}
	return ft_product_run(s, &p);
}

ft_status
ft_own_grad_input(ft_stream *s, ft_mat dx, ft_mat dy, ft_mat matrix, float beta)
{
	return ft_own_matmul(s, dx, dy, false, matrix, false, 1, beta);
}
