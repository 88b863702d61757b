#!/usr/bin/perl
# run_suites.pl: run the tests of a built tree and count them.
#
#   perl run_suites.pl SCRATCH [engine|sql|tap|fuzz|soak|requests|faults|curves]…
#
# Called by run_tests.sh with the tree as its working directory, as a user that
# may run PostgreSQL.  Every suite is brought to TAP and counted by
# TAP::Harness; a file that crashes, runs out of time or prints no plan counts
# as one failed test, and so does a suite without any test.  What failed is said
# again at the end, where it is found, and the last line is "N passed, N failed".
use strict;
use warnings;
use File::Basename;
use File::Path qw(make_path rmtree);
use TAP::Harness;

my $limit = 1800;    # seconds until a test that hangs is ended
my $fuzz_seconds = $ENV{FUZZ_SECONDS} || 20;    # beyond the corpus

my $mode = shift @ARGV // die "usage: $0 SCRATCH [PART]...\n";
if ($mode eq '--cmocka')  { exit cmocka_to_tap(@ARGV); }
if ($mode eq '--regress') { exit regress_to_tap(@ARGV); }
if ($mode eq '--fuzz')    { exit fuzz_to_tap(@ARGV); }

my $scratch   = $mode;
my %wanted    = map { $_ => 1 } @ARGV;
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
chomp(my $jobs = qx(nproc));
$jobs = 4 if $jobs > 4;    # memory is for a few models
$jobs = $ENV{TEST_JOBS} || $jobs;
my $fault_runs = $ENV{FAULT_RUNS} || 1;
delete @ENV{ grep { /^(PG(?!_CONFIG$)|LC_|LANG|FT_)/ } keys %ENV };
$ENV{LC_ALL}  = $ENV{LANG} = 'C.UTF-8';    # PostgreSQL::Test keeps the latter only
$ENV{PERL5LIB} = '';

# Seconds: for a server to start or to stop, and for whatever else a test waits
# for, or keeps a session open for.  For machines that are slow, and stand still
# now and then: nothing that works comes near.
$ENV{PGCTLTIMEOUT} = 300;
$ENV{PG_TEST_TIMEOUT_DEFAULT} = 600;

my @suites = (checks());
push @suites, engine_suites() if $wanted{engine};
push @suites, sql_suites()    if $wanted{sql};
push @suites, tap_suite()     if $wanted{tap};
push @suites, fuzz_suite()    if $wanted{fuzz};
push @suites, soak_suite()    if $wanted{soak};
push @suites, request_suite() if $wanted{requests};
push @suites, fault_suites()  if $wanted{faults};
push @suites, curve_suite()   if $wanted{curves};

my ($passed, $failed, @table, @failures) = (0, 0);
for my $suite (@suites)
{
	my ($p, $f, $s) = run_suite($suite);
	$passed += $p;
	$failed += $f;
	push @table, sprintf("%-28s %5d passed %5d failed%s", $suite->{name}, $p, $f, $s ? " $s skipped" : '');
	last if $suite->{repeated} && $f > 0;
	print "$suite->{repeated} runs passed\n" if $suite->{repeated};
}
splice(@failures, 10, @failures, '…') if @failures > 10;
print "\n", map({ "$_\n" } @table, @failures), "\n$passed passed, $failed failed\n";
exit($failed > 0 || $passed == 0 ? 1 : 0);

# Run the files of a suite, {name, tests => [[label, command…]…], before, after,
# alone, told, limit}, several at a time unless they share something; returns
# what passed, failed and was skipped.  Of a suite that is `told`, comments are
# printed as well.
sub run_suite
{
	my ($suite) = @_;
	my %command = map { my ($label, @words) = @$_; ($label => \@words) } @{ $suite->{tests} };

	print "\n# $suite->{name}\n";
	if (!%command)
	{
		print "no tests: counted as failed\n";
		return (0, 1, 0);
	}
	if ($suite->{before} && !$suite->{before}->())
	{
		print "could not start: counted as failed\n";
		return (0, 1, 0);
	}

	# What a file writes beside its TAP is kept, and shown when the file fails.
	my %failed_tests;
	my $beside = sub { (my $name = "$suite->{name} $_[0]") =~ s/[^\w.]+/_/g; return "$scratch/log/$name.stderr"; };
	my $harness = TAP::Harness->new({
		exec => sub {
			my ($label) = $_[1];
			return [ 'sh', '-c', 'exec "$@" 2>"$0"', $beside->($label),
				'timeout', '-k', 10, $suite->{limit} // $limit, @{ $command{$label} } ];
		},
		failures => 1,
		timer    => 1,
		jobs     => $suite->{alone} ? 1 : $jobs,
	});
	$harness->callback(made_parser => sub {
		my ($parser, $test) = @_;
		$parser->callback(test => sub {
			push @{ $failed_tests{ $test->[1] } }, $_[0]->number . ' ' . $_[0]->description unless $_[0]->is_ok;
		});
		$parser->callback(comment => sub { print $_[0]->as_string, "\n"; }) if $suite->{told};
	});
	my $aggregate = $harness->runtests(sort keys %command);
	$suite->{after}->() if $suite->{after};

	my ($p, $f, $s) = (0, 0, 0);
	for my $label ($aggregate->descriptions)
	{
		my ($parser) = $aggregate->parsers($label);
		push @failures, explain_failure($label, $parser, $failed_tests{$label}, $beside->($label))
		  if $parser->has_problems;
		my $bad  = $parser->failed;
		my $skip = $parser->skipped;
		$p += $parser->passed - $skip;
		$s += $skip || ($parser->skip_all ? 1 : 0);
		$f += $bad || ($parser->has_problems ? 1 : 0);
	}
	if ($p + $f + $s == 0)
	{
		print "no test was run: counted as failed\n";
		$f = 1;
	}
	return ($p, $f, $s);
}

# Show what a file that failed wrote to its standard error; returns a few short
# lines for the end of the report: the tests, and what the first one said.
sub explain_failure
{
	my ($label, $parser, $tests, $path) = @_;
	my $written = '';
	if (open(my $in, '<', $path))
	{
		local $/;
		$written = <$in> // '';
	}
	print "\n# $label\n$written";

	my @tests = @{ $tests // [] };
	push @tests, 'exit status ' . ($parser->exit // 'none') . ', tests run ' . $parser->tests_run
	  if !@tests || $parser->exit;
	my ($said) = $written =~ /^(#\s+Failed .*)/ms;
	my @lines = grep { !/^#\s+Failed test/ } split(/\n/, $said // substr($written, -500));
	splice(@lines, 4);
	return map { length > 300 ? substr($_, 0, 300) . '…' : $_ } "failed: $label: " . join('; ', @tests), @lines;
}

sub checks
{
	return { name => 'build and style', tests => [ [ 'checks', 'cat', "$scratch/checks.tap" ] ] };
}

# Unit tests, the same under sanitizers, and the engine as a program.
sub engine_suites
{
	my $unit = sub {
		my ($build) = @_;
		return map { [ basename($_), $^X, $0, '--cmocka', $_ ] }
		  sort grep { -x && basename($_) =~ /^test_\w+$/ } glob("$build/test/engine/test_*");
	};
	return (
		{ name => 'engine units',              tests => [ $unit->('build') ] },
		{ name => 'engine units, sanitizers',  tests => [ $unit->('build/sanitized') ] },
		{
			name  => 'engine programs',
			tests => [ map { [ $_, $^X, '-Itest/engine', $_ ] } glob('test/engine/[0-9]*.pl') ],
		});
}

sub sql_suites
{
	my ($bindir, $source) = postgresql();
	my @regress = grep { !/^pg_finetune(--|$)/ } map { basename($_, '.sql') } glob('sql/*.sql');
	my @isolation = map { basename($_, '.spec') } glob('test/isolation/specs/*.spec');

	make_path("$scratch/regress", "$scratch/isolation");
	my $conf = server_conf("$scratch/temp.conf");
	my $options = sub {
		my ($out, $in) = @_;
		return ("--temp-instance=$out/instance", "--temp-config=$conf", "--inputdir=$in",
			"--outputdir=$out", "--bindir=$bindir", '--encoding=UTF8', '--no-locale');
	};
	my @suites = ({ name => 'error sites', tests => [ [ 'test/errors.pl', $^X, 'test/errors.pl' ] ] });
	push @suites, {
		name  => 'pg_regress',
		tests => @regress
		? [ [ 'sql', $^X, $0, '--regress', "$scratch/regress", "$source/test/regress/pg_regress",
				$options->("$scratch/regress", '.'), @regress ] ]
		: [],
	};
	push @suites, pgtap_suite($bindir, $conf);
	push @suites, {
		name  => 'isolation',
		tests => @isolation
		? [ [ 'isolation', $^X, $0, '--regress', "$scratch/isolation",
				"$source/test/isolation/pg_isolation_regress", '--load-extension=pg_finetune',
				$options->("$scratch/isolation", 'test/isolation'), @isolation ] ]
		: [],
	};
	return @suites;
}

# pgTAP: one cluster, and for each file a fresh database that has both extensions.
sub pgtap_suite
{
	my ($bindir, $conf) = @_;
	my $data = "$scratch/pgtap";
	my @psql = ("$bindir/psql", '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $data, '-d');
	my @files = glob('test/pgtap/*.sql');

	my $before = sub {
		system("$bindir/initdb -D $data -A trust -E UTF8 --no-locale -N >$scratch/log/pgtap.initdb 2>&1") == 0
		  or return 0;
		system("cat $conf >>$data/postgresql.conf");
		system("$bindir/pg_ctl -s -w -D $data -l $scratch/log/pgtap.log -o \"-c listen_addresses='' -k $data\" start") == 0
		  or return 0;
		for my $file (@files)
		{
			my $name = basename($file, '.sql');
			system(@psql, 'postgres', '-c', "CREATE DATABASE \"$name\"") == 0 or return 0;
			system(@psql, $name, '-c', 'CREATE EXTENSION pgtap', '-c', 'CREATE EXTENSION pg_finetune') == 0
			  or return 0;
		}
		return 1;
	};
	return {
		name   => 'pgTAP',
		tests  => [ map { [ $_, @psql, basename($_, '.sql'), '-f', $_ ] } @files ],
		alone  => 1,        # the files' roles have the same names
		before => $before,
		after  => sub { system("$bindir/pg_ctl -s -w -D $data -m immediate stop"); },
	};
}

# PostgreSQL's programs, and what its development package has of its own source.
sub postgresql
{
	chomp(my $bindir = qx($pg_config --bindir));
	chomp(my $pgxs = qx($pg_config --pgxs));
	return ($bindir, dirname(dirname($pgxs)));
}

# Settings of the temporary clusters of pg_regress, isolation and pgTAP.
sub server_conf
{
	my ($path) = @_;
	chomp(my $tree = qx(pwd));
	open(my $in, '<', 'test/postgresql.conf') or die "test/postgresql.conf: $!";
	open(my $out, '>', $path) or die "$path: $!";
	print {$out} $_ while defined($_ = <$in>);
	print {$out} "pg_finetune.model_directory = '$tree/cache'\n";
	close $out or die "$path: $!";
	return $path;
}

# What PostgreSQL::Test wants to find around it; returns Perl with its folder.
sub with_postgresql_test
{
	my ($bindir, $source) = postgresql();
	$ENV{PG_REGRESS} = "$source/test/regress/pg_regress";
	$ENV{PATH} = "$bindir:$ENV{PATH}";
	chomp($ENV{TESTDIR} = qx(pwd));
	$ENV{TESTDATADIR} = "$ENV{TESTDIR}/tmp_check";
	$ENV{PGPORT} = 65432;
	return ($^X, "-I$source/test/perl", '-Itest/tap');
}

sub tap_suite
{
	my @perl = with_postgresql_test();
	return {
		name  => 'server TAP',
		tests => [ map { [ $_, @perl, $_ ] } glob('test/tap/[0-9]*.pl') ],
	};
}

# Random faults; as many seconds for each, and for what comes before and after.
sub soak_suite
{
	my @perl = with_postgresql_test();
	return {
		name  => 'soak',
		tests => [ [ 'test/soak/soak.pl', @perl, 'test/soak/soak.pl' ] ],
		limit => $limit + 30 * ($ENV{FAULTS} || 200),
		told  => 1,
	};
}

# Many sessions that ask: CLIENTS and CALLS.
sub request_suite
{
	my @perl = with_postgresql_test();
	return {
		name  => 'requests',
		tests => [ [ 'test/tap/055_requests.pl', @perl, 'test/tap/055_requests.pl' ] ],
		told  => 1,
	};
}

# The files that test/faults.md names, again and again: FAULT_RUNS times, or until one fails.
sub fault_suites
{
	my %named;
	open(my $in, '<', 'test/faults.md') or die "test/faults.md: $!";
	while (my $line = <$in>) { $named{"test/tap/$_"} = 1 for $line =~ /`(\d{3}_\w+\.pl)`/g; }
	my $suite = tap_suite();
	my @tests = grep { delete $named{ $_->[0] } } @{ $suite->{tests} };
	die 'test/faults.md names what is not there: ', join(' ', sort keys %named), "\n" if %named;
	my $fresh = sub { rmtree('tmp_check'); return 1; };
	return map { { name => "faults, run $_", tests => \@tests, before => $fresh, repeated => $_ } } 1 .. $fault_runs;
}

# Training beside every reference of test/golden/curves, in f32, and some in bf16, too.
sub curve_suite
{
	my @curves = grep { !/-bf16$/ } map { basename($_, '.tsv') } glob('test/golden/curves/*.tsv');
	return {
		name  => 'curves',
		tests => [ map { [ $_, $^X, '-Itest/engine', 'test/engine/028_curves.pl', $_ ] }
			  @curves, 'lora_r16-bf16', 'full-bf16' ],
		alone => 1,
		told  => 1,
	};
}

sub fuzz_suite
{
	my @targets = grep { -x } glob('build/sanitized/test/fuzz/fuzz_*');
	return {
		name  => 'fuzzing',
		limit => $limit + $fuzz_seconds,
		tests => [ map { [ basename($_), $^X, $0, '--fuzz', $_, $scratch ] } @targets ],
	};
}

# A cmocka program may run several groups, each with numbers and a plan of its
# own: make one TAP stream of them.
sub cmocka_to_tap
{
	my ($program) = @_;
	my ($planned, $number) = (0, 0);
	$ENV{CMOCKA_MESSAGE_OUTPUT} = 'TAP';
	$| = 1;
	open(my $out, '-|', $program) or die "$program: $!";
	while (my $line = <$out>)
	{
		if ($line =~ /^1\.\.(\d+)/) { $planned += $1; }
		elsif ($line =~ s/^((?:not )?ok) \d+/"$1 " . ++$number/e)
		{
			$line =~ s/^not ok (\d+ # SKIP)/ok $1/;
			print $line;
		}
		else { print $line =~ /^#/ ? $line : "# $line"; }
	}
	close $out;
	print "1..$planned\n";
	print "# $program ended with status $?\n" if $?;
	return $? ? 1 : 0;
}

# pg_regress and pg_isolation_regress: "test NAME ... ok|FAILED" into TAP.
sub regress_to_tap
{
	my ($directory, @command) = @_;
	my $number = 0;
	$| = 1;
	open(my $out, '-|', @command) or die "$command[0]: $!";
	while (my $line = <$out>)
	{
		if ($line =~ /^(?:test|    )\s*(\S+)\s+\.\.\.\s+(ok|FAILED|failed)/)
		{
			printf "%s %d - %s\n", $2 eq 'ok' ? 'ok' : 'not ok', ++$number, $1;
		}
		else { print "# $line"; }
	}
	close $out;
	my $status = $?;
	print "1..$number\n";
	if ($status)
	{
		open(my $diffs, '<', "$directory/regression.diffs");
		print STDERR <$diffs> if $diffs;
	}
	return $status ? 1 : 0;
}

# A fuzz target: first its corpus, then $fuzz_seconds beyond.
sub fuzz_to_tap
{
	my ($target, $scratch) = @_;
	(my $name = basename($target)) =~ s/^fuzz_//;
	my $found = "$scratch/fuzz/$name";
	my $corpus = "test/fuzz/corpus/$name";
	my @seeds = -d $corpus ? glob("$corpus/*") : ();
	make_path($found);

	print "1..2\n";
	my $replay = @seeds ? run_quietly($target, @seeds) : 1;
	print $replay == 0 ? "ok" : "not ok", " 1 - $name: ", scalar(@seeds), " files of the corpus\n";
	my $explore = run_quietly($target, "-max_total_time=$fuzz_seconds", '-timeout=10', '-rss_limit_mb=2048',
		"-artifact_prefix=$scratch/log/$name-", $found, @seeds ? $corpus : ());
	print $explore == 0 ? "ok" : "not ok", " 2 - $name: beyond it\n";
	return $replay || $explore ? 1 : 0;
}

# Run a command; its output is shown only when it fails.
sub run_quietly
{
	my @command = @_;
	my $output = '';
	my $pid = open(my $out, '-|') // die "fork: $!";
	if (!$pid)
	{
		open(STDERR, '>&', \*STDOUT);
		exec(@command) or die "$command[0]: $!";
	}
	while (my $line = <$out>) { $output .= $line; }
	close $out;
	print STDERR $output if $?;
	return $? ? 1 : 0;
}
