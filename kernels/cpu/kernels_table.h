/*
 * kernels_table.h: the table of the kernels of one instruction set; included
 * after all *_kernel.h with KERNELS_NAME and KERNELS_LABEL defined.
 */
const ft_kernels KERNELS_NAME = {
	.name = KERNELS_LABEL,
	.gemm = gemm,
	.unpack =
		{
			[FT_F32] = unpack_f32,
			[FT_F16] = unpack_f16,
			[FT_BF16] = unpack_bf16,
			[FT_Q4_0] = unpack_q4_0,
			[FT_Q4_1] = unpack_q4_1,
			[FT_Q5_0] = unpack_q5_0,
			[FT_Q5_1] = unpack_q5_1,
			[FT_Q8_0] = unpack_q8_0,
			[FT_Q6_K] = unpack_q6_k,
		},
	.fill_panel = fill_panel,
	.to_f32 = to_f32,
	.to_bf16 = to_bf16,
	.axpy = axpy,
	.sum_squares = sum_squares,
	.dots = dots,
	.rmsnorm = rmsnorm,
	.rmsnorm_grad = rmsnorm_grad,
	.accumulate = accumulate,
	.head_norm = head_norm,
	.head_norm_grad = head_norm_grad,
	.rope = rope,
	.swiglu = swiglu,
	.swiglu_grad = swiglu_grad,
	.exp_row = exp_row,
	.max_row = max_row,
	.softmax_grad = softmax_grad,
	.argmax = argmax,
	.sum_exp = sum_exp,
	.find_above = find_above,
	.exp_scale = exp_scale,
	.adamw = adamw,
};
