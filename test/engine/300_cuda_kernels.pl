# 300_cuda_kernels.pl: the CUDA backend's kernels, emulated: rows, norms, attention, experts, and training steps.
use strict;
use warnings;

use CudaKernels;
use Test::More;

# Kernels differ by type rather than by numerics: the slower programs run for one of the two.
judge('test_ops_rows');
judge('test_blocks');
judge('test_nf4', 'fast');
judge('test_qlora');
judge('test_k_quants');
judge('test_ops_transformer', 'fast');
judge('test_ops_heads', 'fast');
judge('test_ops_dropout', 'fast');
judge('test_ops_attention', 'fast');
judge('test_gradients');
judge('test_ops_experts');
judge('test_experts');
judge('test_families');
judge('test_full', 'fast');

# The threads of a block in another order show a missing barrier.
judge('test_ops_rows', 'fast', PG_FINETUNE_EMULATOR_REVERSE => 1);
judge('test_ops_attention', 'fast', PG_FINETUNE_EMULATOR_REVERSE => 1);
judge('test_ops_experts', 'fast', PG_FINETUNE_EMULATOR_REVERSE => 1);

done_testing();
