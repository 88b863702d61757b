/*
 * parameters.c: a model's own weights as something that training changes.
 */
#include "parameters.h"

#include "buffer.h"

#include <stdlib.h>

static ft_status
create(const ft_config *config, ft_parameters *p)
{
	FT_TRY(ft_weight_layout_create(config, &p->layout));
	FT_TRY(ft_arena_want(&p->arena, &p->matrices, p->layout->matrices, p->dtype));
	FT_TRY(ft_arena_want(&p->arena, &p->vectors, p->layout->n - p->layout->matrices, FT_F32));
	return ft_arena_allocate(&p->arena, p->ops, p->device);
}

ft_status
ft_parameters_create(const ft_config *config, const ft_ops *ops, ft_device *device, ft_dtype dtype,
					 ft_parameters **parameters)
{
	ft_parameters *p;
	ft_status status;

	FT_TRY(ft_alloc((void **) &p, 1, sizeof *p));
	p->ops = ops;
	p->device = device;
	p->dtype = dtype;
	status = create(config, p);
	if (status != FT_OK)
	{
		ft_parameters_free(p);
		return status;
	}
	*parameters = p;
	return FT_OK;
}

void
ft_parameters_free(ft_parameters *p)
{
	if (p == NULL)
		return;
	ft_arena_free(&p->arena);
	ft_weight_layout_free(p->layout);
	free(p);
}

size_t
ft_parameters_value_bytes(const ft_parameters *p, int64_t at)
{
	return at >= p->layout->matrices || p->dtype == FT_F32 ? 4 : 2;
}

ft_mat
ft_parameters_at(const ft_parameters *p, int64_t at, int64_t rows, int64_t cols)
{
	if (at >= p->layout->matrices)
		return ft_mat_make(p->vectors + (at - p->layout->matrices), FT_F32, rows, cols);
	return ft_mat_make((char *) p->matrices + (size_t) at * ft_parameters_value_bytes(p, at),
					   p->dtype, rows, cols);
}
