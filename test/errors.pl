#!/usr/bin/perl
# errors.pl: every error that src/pg and sql/ can raise has a test that checks
# its SQLSTATE and its message.
#
#   perl test/errors.pl          TAP: one test for each site
#   perl test/errors.pl --list   the sites: file, function, SQLSTATE, message, where it is tested
#
# Sites are read from the sources: ereport(ERROR, ...), elog(ERROR, ...), also
# with a level that is a variable, tables of {ERRCODE_..., "message"}, and RAISE.  Tests are read as text
# too: what pg_regress and isolation tests are to print, and what pgTAP and TAP
# tests compare with.  A test covers a site when it holds the whole message, or
# a pattern with a good part of it, and the SQLSTATE in the same line (output)
# or statement (code).  That the tests pass is checked by running them; this
# finds the sites that none of them names.
#
# test/errors.exclusions lists the sites that no test can reach, with reasons;
# one that fits no site is an error, too.
use strict;
use warnings;

my $least_fragment = 12;    # characters that a pattern has to share with a message

my $list_only = @ARGV && $ARGV[0] eq '--list';
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my %sqlstate  = read_sqlstates();
my @sites     = (map({ c_sites($_) } glob('src/pg/*.c')), map({ sql_sites($_) } glob('sql/pg_finetune--*.sql')));
my @tests     = read_tests();
my @excluded  = read_exclusions();

if ($list_only)
{
	for my $site (@sites)
	{
		my $where = excluded($site) // covered($site) // 'no test';
		print join("\t", @$site{qw(file function state message)}, $where), "\n";
	}
	exit 0;
}

my ($number, $failed) = (0, 0);
report(@sites > 50, scalar(@sites) . ' sites were found');
for my $site (@sites)
{
	next if defined excluded($site);
	report(defined covered($site), "$site->{file} $site->{function}(): $site->{state} $site->{message}");
}
report($_->{used}, "excluded: $_->{file} $_->{message}") for @excluded;
print "1..$number\n";
exit($failed > 0 ? 1 : 0);

sub report
{
	my ($ok, $name) = @_;
	$name =~ s/#/\\#/g;
	$number++;
	$failed++ if !$ok;
	print $ok ? 'ok' : 'not ok', " $number - $name\n";
}

sub slurp
{
	my ($path) = @_;
	open(my $file, '<', $path) or die "$path: $!\n";
	local $/;
	return scalar <$file>;
}

# ERRCODE_... to SQLSTATE, from PostgreSQL's own table.
sub read_sqlstates
{
	chomp(my $share = qx($pg_config --sharedir));
	my %state;
	for (split /\n/, slurp("$share/errcodes.txt"))
	{
		$state{$2} = $1 if /^(\w{5})\s+\w\s+(ERRCODE_\w+)/;
	}
	return %state;
}

# --- sites -------------------------------------------------------------------

# The text from an opening bracket to the one that closes it, strings left aside.
sub bracketed
{
	my ($text) = @_;
	return $text =~ /\A(\((?:[^()"']++|"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|(?1))*+\))/s ? $1 : die "unbalanced: " . substr($text, 0, 80);
}

# A format: adjacent literals are one, and a macro between them is a conversion.
sub format_of
{
	my ($arguments) = @_;
	my $format = '';
	while ($arguments =~ /\G\s*(?:"((?:[^"\\]|\\.)*)"|([A-Z0-9_]+_FORMAT|PRI\w+))/gc)
	{
		$format .= defined $1 ? $1 : '%s';
	}
	$format =~ s/\\(["\\])/$1/g;
	return $format;
}

sub c_sites
{
	my ($path) = @_;
	my $source = slurp($path);
	my @found;

	$source =~ s{/\*.*?\*/}{(my $c = $&) =~ s/[^\n]/ /g; $c}gse;
	while ($source =~ /\b(ereport|elog)(?=\()/g)
	{
		my $kind = $1;
		my $call = bracketed(substr($source, pos $source));
		my ($level) = $call =~ /\A\(\s*(\w+)/;
		next if $level =~ /^(?:DEBUG\d|LOG|LOG_SERVER_ONLY|COMMERROR|INFO|NOTICE|WARNING)$/;
		my ($function) = substr($source, 0, pos $source) =~ /.*^(\w+)\(/ms;
		my @messages =
		  $kind eq 'elog'
		  ? format_of($call =~ /\A\(\s*\w+\s*,(.*)\z/s)
		  : map { format_of($_) } $call =~ /\berrmsg(?:_internal)?\(((?:\s*(?:"(?:[^"\\]|\\.)*"|[A-Z0-9_]+))+)/g;
		my ($code) = $call =~ /\berrcode\(\s*(ERRCODE_\w+)\s*\)/;
		my $state = $code ? $sqlstate{$code} // die "$path: $code\n" : $call =~ /\berrcode/ ? 'any' : 'XX000';
		push @found, { file => $path, function => $function, state => $state, message => $_ } for @messages;
	}
	# a table of what may be raised
	while ($source =~ /\{\s*(ERRCODE_\w+)\s*,\s*("(?:[^"\\]|\\.)*")/g)
	{
		push @found, { file => $path, function => 'table', state => $sqlstate{$1}, message => format_of($2) };
	}
	return @found;
}

sub sql_sites
{
	my ($path) = @_;
	my @found;

	my $source = slurp($path);
	while ($source =~ /\bRAISE\s+(?:EXCEPTION\s+)?'((?:[^']|'')*)'([^;]*);/g)
	{
		my ($message, $rest) = ($1, $2);
		my ($state) = $rest =~ /ERRCODE\s*=\s*'(\w{5})'/i;
		$message =~ s/''/'/g;
		$message =~ s/%/%s/g;
		push @found, { file => $path, function => 'RAISE', state => $state // 'P0001', message => $message };
	}
	return @found;
}

# The literal pieces of a format.
sub pieces
{
	my ($format) = @_;
	$format =~ s/%%/\0/g;
	return map { s/\0/%/gr } split /%[-+ #0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:ll|l|z|h)?[a-zA-Z]/, $format, -1;
}

# --- tests -------------------------------------------------------------------

# What is compared, {file, text, patterns}: a line of output, a statement of code.
sub read_tests
{
	my @found;

	for my $path (glob('expected/*.out test/isolation/expected/*.out'))
	{
		push @found, { file => $path, text => $_, patterns => [] } for split /\n/, slurp($path);
	}
	for my $path (glob('test/pgtap/*.sql'))
	{
		push @found, { file => $path, text => $_ =~ s/''/'/gr, patterns => [] } for split /;\n/, slurp($path);
	}
	for my $path (glob('test/tap/*.pl'))
	{
		for my $statement (perl_statements(slurp($path)))
		{
			my @patterns = map { s/\\([^\w\s])/$1/gr } $statement =~ m{qr/((?:[^/\\]|\\.)*)/}gs;
			push @patterns, map { s/\\([^\w\s])/$1/gr } $statement =~ m{qr\{((?:[^{}\\]|\\.)*)\}}gs;
			push @found, { file => $path, text => $statement =~ s/\\([^\w\s])/$1/gr, patterns => \@patterns };
		}
	}
	return @found;
}

# A file of Perl cut where a statement at its left edge begins.
sub perl_statements
{
	my @found = ('');
	my $ended = 1;
	for my $line (split /^/, $_[0])
	{
		push @found, '' if $ended && $line =~ /^[^\s{})]/;
		$found[-1] .= $line;
		$ended = $line =~ /[;}]\s*$/ if $line =~ /\S/;
	}
	return @found;
}

# Where a site is tested, or undef.
sub covered
{
	my ($site) = @_;
	my @pieces = pieces($site->{message});
	my $whole  = join '.*?', map { quotemeta } @pieces;
	my $state  = $site->{state} eq 'any' ? qr/\b(?=[A-Z]*\d)[0-9A-Z]{5}\b/ : qr/\b$site->{state}\b/;

	return undef if join('', @pieces) !~ /\w/;
	for my $test (@tests)
	{
		next if $test->{text} !~ $state;
		return $test->{file} if $test->{text} =~ /$whole/;
		for my $pattern (@{ $test->{patterns} })
		{
			for my $run (split /[.][*+][?]?|\\[dwS][*+]?|\[[^\]]*\][*+]?|[\^\$]/, $pattern)
			{
				return $test->{file} if length $run >= $least_fragment && grep { index($_, $run) >= 0 } @pieces;
			}
		}
	}
	return undef;
}

# --- exclusions --------------------------------------------------------------

# Lines "FILE | MESSAGE | REASON"; a message ends in * where the rest does not matter.
sub read_exclusions
{
	my @found;

	for (split /\n/, slurp('test/errors.exclusions'))
	{
		next if /^\s*(?:#|$)/;
		my ($file, $message, $reason) = split /\s+\|\s+/, $_, 3;
		die "no reason: $_\n" if !defined $reason || $reason !~ /\w/;
		push @found, { file => $file, message => $message, reason => $reason, used => 0 };
	}
	return @found;
}

sub excluded
{
	my ($site) = @_;

	for my $line (@excluded)
	{
		my $pattern = join '.*', map { quotemeta } split /\*/, $line->{message}, -1;
		next if $line->{file} ne $site->{file} || $site->{message} !~ /\A$pattern\z/s;
		$line->{used} = 1;
		return "excluded: $line->{reason}";
	}
	return undef;
}
