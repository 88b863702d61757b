# CudaKernels.pm: run the tests that judge every backend on the CUDA backend's kernels, on the CPU, by the
# emulator (test/gpu/emulator.h).
package CudaKernels;
use strict;
use warnings;

use Exporter 'import';
use Test::More;

our @EXPORT = qw(judge);

my $backend = "build/emulated/pg_finetune_cuda.so";

# One program, in "fast" or "reference" numerics or (undef) both, with more of the environment.
sub judge
{
	my ($program, $numerics, %more) = @_;
	local %ENV = (
		%ENV, %more,
		PG_FINETUNE_TEST_BACKEND => "cuda",
		PG_FINETUNE_CUDA_BACKEND => $backend);
	$ENV{PG_FINETUNE_TEST_NUMERICS} = $numerics if defined $numerics;
	my $output = `build/test/engine/$program 2>&1`;
	my $status = $?;
	my $passed = () = $output =~ /^\[       OK \]/mg;
	my @lines = split /\n/, $output;
	my $name = join ' ', $program, map { "$_=$more{$_}" } sort keys %more;

	ok($status == 0 && $passed > 0 && $output !~ /^skip: /m, "$name: $passed passed")
	  or diag(join "\n", splice @lines, @lines > 40 ? -40 : 0);
}

1;
