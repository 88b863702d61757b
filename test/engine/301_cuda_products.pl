# 301_cuda_products.pl: the CUDA backend's kernels, emulated: products, loss and sampling.
use strict;
use warnings;

use CudaKernels;
use Test::More;

judge('test_ops_matmul', 'fast');
judge('test_ops_loss', 'fast');

done_testing();
