/*
 * ops.c: the check that a backend fills every entry of the table.
 */
#include "ops.h"

ft_status
ft_ops_check(const ft_ops *ops)
{
	if (ops == NULL)
		return ft_fail(FT_INTERNAL, "no table of operations");
	if (ops->version != FT_OPS_VERSION)
		return ft_fail(FT_INTERNAL, "table of operations \"%s\" has version %d, expected %d",
					   ops->name != NULL ? ops->name : "?", ops->version, FT_OPS_VERSION);
	if (ops->name == NULL)
		return ft_fail(FT_INTERNAL, "table of operations has no name");

#define CHECK(entry)                                                                            \
	do                                                                                          \
	{                                                                                           \
		if (ops->entry == NULL)                                                                 \
			return ft_fail(FT_INTERNAL, "backend \"%s\" lacks the operation \"%s\"", ops->name, \
						   #entry);                                                             \
	} while (0)

	CHECK(device_open);
	CHECK(device_close);
	CHECK(device_info);
	CHECK(mem_alloc);
	CHECK(mem_free);
	CHECK(stream_create);
	CHECK(stream_destroy);
	CHECK(stream_synchronize);
	CHECK(copy_to_device);
	CHECK(copy_to_host);
	CHECK(copy);
	CHECK(zero);
	CHECK(weight_create);
	CHECK(weight_view);
	CHECK(weight_free);
	CHECK(weight_bytes);
	CHECK(dequantise);
	CHECK(linear);
	CHECK(linear_grad_input);
	CHECK(matmul);
	CHECK(lora);
	CHECK(embed);
	CHECK(gather_rows);
	CHECK(scatter_add_rows);
	CHECK(convert);
	CHECK(add);
	CHECK(add_bias);
	CHECK(sum_rows);
	CHECK(embed_grad);
	CHECK(rmsnorm);
	CHECK(rmsnorm_grad);
	CHECK(head_norm);
	CHECK(head_norm_grad);
	CHECK(rope);
	CHECK(swiglu);
	CHECK(swiglu_grad);
	CHECK(dropout);
	CHECK(attention);
	CHECK(attention_grad);
	CHECK(kv_store);
	CHECK(attention_paged);
	CHECK(route);
	CHECK(route_grad);
	CHECK(group_rows);
	CHECK(linear_experts);
	CHECK(combine_rows);
	CHECK(weigh_rows_grad);
	CHECK(cross_entropy);
	CHECK(sum_squares);
	CHECK(adamw);
	CHECK(adamw_8bit);
	CHECK(sample);
#undef CHECK
	return FT_OK;
}
