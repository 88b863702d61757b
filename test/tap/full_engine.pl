#!/usr/bin/perl
#
# full_engine.pl ENGINE RESULT ARGUMENT...: an engine that trains full models by
# copying a directory, for tests of what becomes of the result.
#
# All else than `train` with method "full" is done by the program ENGINE.
use strict;
use warnings;

use File::Copy;
use JSON::PP;

my ($engine, $result, @arguments) = @ARGV;
my $directory = $arguments[1] // '';
my $job = $arguments[0] eq 'train' ? decode_json(slurp("$directory/job.json")) : undef;

exec { $engine } $engine, @arguments if !$job || $job->{options}{method} ne 'full';

sub slurp
{
	my ($path) = @_;

	open(my $file, '<:raw', $path) or die "$path: $!\n";
	local $/;
	return scalar <$file>;
}

sub say_event
{
	my ($name, %members) = @_;

	print encode_json({ event => $name, %members }), "\n";
	return;
}

$| = 1;
say_event('started', device => 'cpu', threads => 1, architecture => 'llama', parameters => 11560, resumed_from => 0,
	$job->{base}{digest} ? (base_digest => $job->{base}{digest}) : ());
say_event('dataset', rows => { read => 100, used => 100, skipped_null => 0, truncated => 0 }, tokens => 1000, data_hash => 'x');
say_event('plan', total_steps => 1, epochs => 1, options => $job->{options}, trainable_parameters => 11560);
say_event('step', step => 1, total_steps => 1, epoch => 1, training_loss => 2.5, learning_rate => 0.001, grad_norm => 1,
	tokens => 1000, trained_tokens => 500, tokens_per_second => 100, elapsed => 10);
say_event('evaluation', step => 1, epoch => 1, validation_loss => 2.25, validation_token_accuracy => 0.5);
mkdir "$directory/model" or $!{EEXIST} or die "$directory/model: $!\n";
for my $file (glob "$result/*")
{
	copy($file, $file =~ s{.*/}{$directory/model/}r) or die "$file: $!\n";
}
say_event('completed', model => 'model', training_loss => 2.5, validation_loss => 2.25, validation_token_accuracy => 0.5,
	steps => 1, trained_tokens => 500, tokens_per_second => 100);
