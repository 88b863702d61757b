# JobTest.pm: job directories on the tiny model, and engines that work on them.
package JobTest;

use strict;
use warnings;

use Exporter qw(import);
use File::Path qw(make_path);
use File::Temp qw(tempdir);
use JSON::PP qw(decode_json encode_json);

our @EXPORT = qw(spew slurp jsonl new_job start_engine run_engine named);

our $engine = "build/pg_finetune_engine";
our $base = "test/golden/tiny_llama/tied/base.gguf";
our $scratch = tempdir(CLEANUP => 1);
our @rows = map { { prompt => "row $_ " . ("x" x ($_ % 7)), completion => "the " . ($_ * $_) } } 1 .. 24;

my $made = 0;

sub spew
{
	my ($path, $text) = @_;
	open my $file, '>', $path or die "$path: $!";
	print $file $text;
	close $file or die "$path: $!";
}

sub slurp
{
	my ($path) = @_;
	open my $file, '<:raw', $path or return undef;
	local $/;
	return scalar <$file>;
}

sub jsonl
{
	return join '', map { encode_json($_) . "\n" } @_;
}

# A job directory; what is given replaces the defaults of job.json and of the
# rows.  %change: job (a hash) or json, train, validation.
sub new_job
{
	my (%change) = @_;
	my $directory = "$scratch/job" . ++$made;
	make_path($directory);
	my %job = (
		version => 1,
		base => { path => $base, name => "tiny" },
		device => "cpu",
		threads => 2,
		numerics => "reference",
		options => { max_epochs => 3, batch_size => 200, learning_rate => 0.01, lora_r => 4, n_evals => 4 },
		%{ $change{job} // {} });
	spew("$directory/job.json", $change{json} // encode_json(\%job));
	spew("$directory/train.jsonl", $change{train} // jsonl(@rows));
	spew("$directory/validation.jsonl", $change{validation}) if defined $change{validation};
	return $directory;
}

# Start a program of the engine on a directory: (pid, handle of its events).
sub start_engine
{
	my ($program, $directory, @more) = @_;
	pipe my $read, my $write or die $!;
	my $pid = fork() // die $!;
	if ($pid == 0)
	{
		open STDOUT, '>&', $write or die $!;
		open STDERR, '>>', "$scratch/stderr" or die $!;
		exec $engine, $program, $directory, @more or die $!;
	}
	close $write;
	return ($pid, $read);
}

# Run one to the end: exit code and events.
sub run_engine
{
	my ($pid, $events) = start_engine(@_);
	my @events = map { decode_json($_) } <$events>;
	waitpid $pid, 0;
	return ($? >> 8, @events);
}

sub named
{
	my ($name, @events) = @_;
	return grep { $_->{event} eq $name } @events;
}

1;
