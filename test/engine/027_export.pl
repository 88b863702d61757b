# 027_export.pl: `export JOBDIR`: its files, what it refuses, and that it leaves
# all of a directory or nothing, whatever interrupts it.
use strict;
use warnings;

use Errno qw(EIO ENOSPC);
use FaultShim;
use JSON::PP qw(decode_json encode_json);
use JobTest;
use Test::More;

my $control = "$JobTest::scratch/control";
my $adapter = 'test/golden/tiny_llama/tied/adapter';
my $out     = "$JobTest::scratch/out";

# A directory with a job.json that exports to $out; what is given replaces members.
sub export_job
{
	my ($format, %more) = @_;
	my %job = (
		version => 1,
		base    => { path => $JobTest::base },
		adapter => $adapter,
		export  => { path => $out, format => $format },
		%more);
	return new_job(json => encode_json(\%job), train => '');
}

sub remove { system('rm', '-rf', $out, "$out.tmp") == 0 or die; }

sub contents
{
	my ($directory) = @_;
	return { map { s{.*/}{}r => slurp($_) } glob("$directory/*") };
}

sub same_contents
{
	my ($a, $b) = @_;
	return "@{[ sort keys %$a ]}" eq "@{[ sort keys %$b ]}" && !grep { $a->{$_} ne $b->{$_} } keys %$a;
}

# With the shim: exit code, signal, and events.
sub run_shimmed
{
	my ($directory) = @_;
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	my ($pid, $events) = start_engine('export', $directory);
	my @events = map { decode_json($_) } grep { /\n\z/ } <$events>;
	waitpid $pid, 0;
	return ($? >> 8, $? & 127, @events);
}

# --- Files

my %files = (
	gguf                => ['model.gguf'],
	'gguf-q8_0'         => ['model.gguf'],
	'gguf-adapter'      => ['adapter.gguf'],
	safetensors         => [qw(config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json)],
	'safetensors-bf16' => [qw(config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json)]);
my %whole;

for my $format (sort keys %files)
{
	remove();
	my ($code, @events) = run_engine('export', export_job($format));
	my ($exported) = named('exported', @events);
	is($code, 0, "$format: ends well");
	is($exported->{quantised_tensors}, 0, "$format: says what the base is");
	$whole{$format} = contents($out);
	is_deeply([ sort keys %{ $whole{$format} } ], $files{$format}, "$format: the files");
	ok(!-e "$out.tmp", "$format: nothing temporary");
	remove();
	run_engine('export', export_job($format));
	is_deeply(contents($out), $whole{$format}, "$format: the same bytes again");
}
remove();
run_engine('export', export_job('gguf-f32', adapter => undef));
my $inspected = decode_json(scalar qx($JobTest::engine inspect $out/model.gguf));
is($inspected->{tensor_types}{f32}, 20, 'without an adapter the base is converted');
is_deeply($inspected->{unsupported}, [], 'to what can be used');

# --- Refusals

sub refused
{
	my ($directory, $code, $pattern, $name) = @_;
	my ($exit, @events) = run_engine('export', $directory);
	my ($failed) = named('failed', @events);
	is("$exit $failed->{code}", "1 $code", "$name: code");
	like(join(' ', grep { defined } @$failed{qw(message hint)}), $pattern, "$name: message");
}

{
	refused(export_job('gguf'), 'invalid', qr/"\Q$out\E" already exists/, 'a directory that is there');
	remove();
	refused(export_job('onnx'), 'invalid', qr/unknown format "onnx" Formats are: safetensors, .*gguf-adapter/, 'a format');
	refused(export_job('gguf', export => undef), 'invalid', qr/"export" is missing/, 'nothing to export');
	refused(export_job('gguf', export => 'x'), 'invalid', qr/"export" is no object/, 'an export that is none');
	refused(export_job('gguf', export => { format => 'gguf' }), 'invalid', qr/"export.path" is missing/, 'no path');
	refused(export_job('gguf', export => { path => $out }), 'invalid', qr/"export.format" is missing/, 'no format');
	refused(export_job('gguf', export => { path => $out, format => 'gguf', to => 1 }), 'invalid', qr/unknown key "export.to"/,
		'an unknown key');
	refused(export_job('gguf-adapter', adapter => undef), 'invalid', qr/"adapter" is missing/, 'no adapter');
	refused(export_job('gguf', export => { path => "$out/no/such", format => 'gguf' }), 'not_found',
		qr/could not create directory "\Q$out\E\/no\/such.tmp"/, 'no parent directory');
	refused(export_job('gguf', adapter => "$out/none"), 'not_found', qr/adapter_config.json/, 'an adapter that is not there');
	refused(export_job('gguf', base => { path => $JobTest::base, digest => '0' x 64 }), 'mismatch', qr/has digest/,
		'another base');
}
ok(!-e $out && !-e "$out.tmp", 'these leave nothing');

# of experts
{
	my %mixture = (base => { path => 'test/golden/tiny_mixtral/plain/base.gguf' },
		adapter => 'test/golden/tiny_mixtral/plain/adapter');
	for my $format ('safetensors', 'gguf', 'gguf-q8_0')
	{
		remove();
		my ($code) = run_engine('export', export_job($format, %mixture));
		is($code, 0, "experts as $format");
		my $path = $format eq 'safetensors' ? $out : "$out/model.gguf";
		my $written = decode_json(scalar qx($JobTest::engine inspect $path));
		is_deeply([ @$written{qw(experts experts_per_token unsupported)} ], [ 5, 2, [] ], 'which can be used');
	}
	remove();
	my ($code) = run_engine('export', export_job('gguf-adapter', %mixture));
	is($code, 0, 'an adapter over experts as GGUF');
	remove();
}

# --- Interruptions

for my $format ('gguf', 'safetensors')
{
	remove();
	arm($control, 'LOG', "* $out*", 1, 0);
	my ($code) = run_shimmed(export_job($format));
	my @calls = logged($control);
	is($code, 0, "$format: a run that is watched ends well");
	cmp_ok(scalar @calls, '>', 20, "$format: " . $#calls . ' calls');
	my ($fsync) = grep { $calls[$_] =~ m{^fsync .*/model\.} } 1 .. $#calls;
	my ($rename) = grep { $calls[$_] =~ m{^rename } } 1 .. $#calls;
	cmp_ok($fsync, '<', $rename, "$format: synced, then renamed");

	for my $fault ([ ENOSPC, 'no_space' ], [ EIO, 'io' ])
	{
		my ($errno, $name) = @$fault;
		my @wrong;

		for my $n (1 .. $#calls)
		{
			remove();
			arm($control, $errno, "* $out*", $n, $n);
			my ($exit, $signal, @events) = run_shimmed(export_job($format));
			my ($failed) = named('failed', @events);
			push @wrong, "$n ($calls[$n]): exit $exit, " . ($failed->{code} // 'no failure')
			  if $exit != 1 || $failed->{code} ne $name;
			# once it has its name, only making that durable is left
			push @wrong, "$n ($calls[$n]): left something"
			  if -e "$out.tmp" || (-e $out && $n <= $rename);
		}
		is(scalar @wrong, 0, "$format: $name at each of the calls: says so, and leaves nothing") or diag(join "\n", @wrong);
	}
	my @torn;
	for my $n (grep { $calls[$_] =~ /^(write|fsync|rename|open|mkdir) / } 1 .. $#calls)
	{
		remove();
		arm($control, $n % 2 ? 'TEAR' : 'KILL', "* $out*", $n, $n);
		my ($exit, $signal) = run_shimmed(export_job($format));
		push @torn, "$n ($calls[$n]): signal $signal" if $signal != 9;
		push @torn, "$n ($calls[$n]): half a directory" if -e $out && !same_contents(contents($out), $whole{$format});
		disarm($control);
		# what is left under the temporary name is in nobody's way
		if (!-e $out)
		{
			my ($again) = run_engine('export', export_job($format));
			push @torn, "$n ($calls[$n]): again $again" if $again != 0 || -e "$out.tmp";
		}
	}
	is(scalar @torn, 0, "$format: killed at each of the calls: all or nothing, and the next try works") or diag(join "\n", @torn);
}

# SIGTERM
remove();
arm($control, 'HOLD', 'write *model.gguf', 2, 2);
{
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	my ($pid, $events) = start_engine('export', export_job('gguf'));
	select(undef, undef, undef, 0.05) until held($control);
	kill 'TERM', $pid;
	disarm($control);
	1 while <$events>;
	waitpid $pid, 0;
	is($? >> 8, 3, 'SIGTERM: cancelled');
	ok(!-e $out && !-e "$out.tmp", 'and nothing is left');
}

done_testing();
