/*
 * parameters.h: a model's own weights as something that training changes.
 *
 * They stand in one piece of device memory (weight_layout.h), and the model's
 * weights are views of it: what an optimizer writes there is what the next pass
 * reads, and nothing is held twice.  Matrices are in the model's compute type,
 * f32 or bf16, vectors always in f32.
 */
#ifndef FT_PARAMETERS_H
#define FT_PARAMETERS_H

#include "arena.h"
#include "weight_layout.h"

typedef struct ft_parameters
{
	ft_weight_layout *layout;
	const ft_ops *ops;
	ft_device *device;
	ft_dtype dtype; /* of the matrices */
	void *matrices; /* device [layout->matrices] */
	float *vectors; /* device [layout->n − layout->matrices] */
	ft_arena arena; /* private */
} ft_parameters;

/* All zero.  FT_NO_MEMORY, with both sizes, when the device has not that much. */
ft_status ft_parameters_create(const ft_config *config, const ft_ops *ops, ft_device *device,
							   ft_dtype dtype, ft_parameters **parameters);
void ft_parameters_free(ft_parameters *parameters);

/* The weight [rows, cols] at that offset of the layout; a vector has one row. */
ft_mat ft_parameters_at(const ft_parameters *parameters, int64_t at, int64_t rows, int64_t cols);

/* Bytes of a value of the weight at that offset. */
size_t ft_parameters_value_bytes(const ft_parameters *parameters, int64_t at);

#endif
