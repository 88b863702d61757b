# SoakProcesses.pm: the engines of a cluster, as /proc shows them.
package SoakProcesses;

use strict;
use warnings;

use Exporter 'import';
our @EXPORT = qw(engines children named_child);

sub stat_of
{
	my ($pid) = @_;

	open(my $file, '<', "/proc/$pid/stat") or return;
	my $line = <$file> // return;
	return $line =~ /\) (\S) (\d+)/;    # state, parent
}

# Engines whose working directory is this one: {pid => {kind, job, parent}},
# where `job` is the job's uuid of one that trains.
sub engines
{
	my ($program, $data) = @_;
	my %found;

	for my $directory (glob '/proc/[0-9]*')
	{
		my ($pid) = $directory =~ /(\d+)/;
		next if (readlink("$directory/exe") // '') !~ /^\Q$program\E( \(deleted\))?$/;
		next if (readlink("$directory/cwd") // '') !~ /^\Q$data\E( \(deleted\))?$/;
		open(my $file, '<', "$directory/cmdline") or next;
		my @argv = split /\0/, <$file> // '';
		my ($state, $parent) = stat_of($pid);
		next if !defined $state || $state eq 'Z';
		my ($job) = ($argv[2] // '') =~ /([0-9a-f]{8}-[0-9a-f-]{27})$/;
		$found{$pid} = { kind => $argv[1] // '', job => $job, parent => $parent };
	}
	return \%found;
}

sub children
{
	my ($parent) = @_;
	my @children;

	for my $directory (glob '/proc/[0-9]*')
	{
		my ($pid) = $directory =~ /(\d+)/;
		my ($state, $ppid) = stat_of($pid);
		push @children, $pid if defined $ppid && $ppid == $parent && $state ne 'Z';
	}
	return @children;
}

# A process of the server by the title that it has given itself.
sub named_child
{
	my ($postmaster, $title) = @_;

	for my $pid (children($postmaster))
	{
		open(my $file, '<', "/proc/$pid/cmdline") or next;
		return $pid if (<$file> // '') =~ /: \Q$title\E/;
	}
	return undef;
}

1;
