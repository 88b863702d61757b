# 300_cuda_kernels.pl: the CUDA backend's kernels, run on the CPU by the emulator
# (test/gpu/emulator.h), judged by the tests that judge every backend.
use strict;
use warnings;

use Test::More;

my $backend = "build/emulated/pg_finetune_cuda.so";

# Kernels differ by type rather than by numerics: the slower programs run for one of the two.
my @programs = (
	[ 'test_ops_rows', '' ], [ 'test_ops_transformer', 'fast' ], [ 'test_ops_matmul', 'fast' ],
	[ 'test_ops_attention', 'fast' ], [ 'test_ops_loss', 'fast' ], [ 'test_gradients', '' ]);

plan skip_all => "$backend was not built, there is no clang" unless -e $backend;

$ENV{PG_FINETUNE_TEST_BACKEND} = "cuda";
$ENV{PG_FINETUNE_CUDA_BACKEND} = $backend;

# What cmocka says of a program's tests: (passed, failed, the last lines).
sub run
{
	my ($program, $numerics) = @_;
	delete local $ENV{PG_FINETUNE_TEST_NUMERICS};
	$ENV{PG_FINETUNE_TEST_NUMERICS} = $numerics if $numerics;
	my $output = `build/test/engine/$program 2>&1`;
	my $status = $?;
	my $passed = () = $output =~ /^\[       OK \]/mg;
	my $failed = () = $output =~ /^\[  FAILED  \] test_/mg;

	return ($status == 0 ? $passed : 0, $failed || ($status == 0 ? 0 : 1), $output);
}

for (@programs)
{
	my ($program, $numerics) = @$_;
	my ($passed, $failed, $output) = run($program, $numerics);
	ok($passed > 0 && $failed == 0, "$program: $passed passed") or diag(join "\n", (split /\n/, $output)[-40 .. -1]);
	unlike($output, qr/^skip: /m, "$program: none was skipped");
}

# A block's threads in another order show a missing barrier; memory that only the device may touch shows
# host code that reads it.
{
	local $ENV{PG_FINETUNE_EMULATOR_REVERSE} = 1;
	for my $program (qw(test_ops_rows test_ops_attention))
	{
		my ($passed, $failed, $output) = run($program, 'fast');
		ok($passed > 0 && $failed == 0, "$program, threads in reverse order: $passed passed")
		  or diag(join "\n", (split /\n/, $output)[-40 .. -1]);
	}
}
{
	local $ENV{PG_FINETUNE_EMULATOR_PROTECT} = 1;
	for my $program (qw(test_kv_cache))
	{
		my ($passed, $failed, $output) = run($program, '');
		ok($passed > 0 && $failed == 0, "$program, device memory protected: $passed passed")
		  or diag(join "\n", (split /\n/, $output)[-40 .. -1]);
	}
}

done_testing();
