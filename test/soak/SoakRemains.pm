# SoakRemains.pm: what a cluster has left that it should not have.
package SoakRemains;

use strict;
use warnings;

use Exporter 'import';
use File::Find;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep);

our @EXPORT = qw(leaked_files bad_lines server_restarts);

# Files of a work directory that nobody needs when no job is left.
sub leaked_files
{
	my ($work) = @_;
	my @leaked;

	# a worker that has written the end of its job down still removes its directory
	for (1 .. 100)
	{
		last if !glob "$work/jobs/*";
		sleep 0.1;
	}
	find(
		sub {
			my $name = substr $File::Find::name, length($work);
			return if -d $_ && $name =~ m{^(/(jobs|cache|sessions))?$};
			return if $name =~ m{^/(instance|engine\.sock|engine\.sock\.lock)$};
			return if -d $_ && $name =~ m{^/cache/[0-9a-f]{64}$};
			return if $name =~ m{^/cache/[0-9a-f]{64}/(adapter_config\.json|adapter_model\.safetensors|model\.gguf)$};
			push @leaked, $name;
		},
		$work);
	return @leaked;
}

# Lines of a log that must not be there, whoever wrote them.  `segv` attempts of
# jobs were ended by that signal on purpose.
sub bad_lines
{
	my ($log, $segv) = @_;
	my @bad;

	for my $line (split /\n/, slurp_file($log))
	{
		next if $line =~ /could not (receive data from|send data to) client/;
		next if $line =~ /came to nothing: training engine died: .* signal 11/ && $segv-- > 0;
		push @bad, $line if $line =~ /PANIC|[Ss]egmentation|TRAP|\bleak|could not|Sanitizer/;
	}
	return @bad;
}

# How often a server that was started once was started, or initialized, again.
sub server_restarts
{
	my ($log) = @_;

	return (() = slurp_file($log) =~ /database system is ready to accept connections/g) - 1;
}

1;
