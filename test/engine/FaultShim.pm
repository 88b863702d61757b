# FaultShim.pm: programs that are interrupted at the Nth of their calls that
# change files (fault_shim.c).
package FaultShim;

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);

our @EXPORT = qw(arm disarm counted logged held);

our $library = abs_path('build/test/fault_shim.so') // die 'make fault-shim';

sub write_control
{
	my ($control, $line) = @_;
	open my $file, '>', $control or die "$control: $!";
	print $file "$line\n";
	close $file or die "$control: $!";
	# the programs may run as another user, but must find what is written here
	chmod 0666, $control;
}

# From now on, do this from the first call to the last (0: to the end) of those
# whose "name path" matches the pattern.
sub arm
{
	my ($control, $action, $pattern, $first, $last) = @_;
	unlink "$control.log";
	write_control($control, join ' ', 0, $first, $last, $action, $pattern);
}

sub disarm
{
	my ($control) = @_;
	write_control($control, '0 1 0 NONE -');
}

# How many calls were counted since arm().
sub counted
{
	my ($control) = @_;
	open my $file, '<', $control or die "$control: $!";
	return (split / /, scalar <$file>)[0];
}

# What LOG has seen: "name path" by the call's number, from 1 on.
sub logged
{
	my ($control) = @_;
	my @calls;
	open my $file, '<', "$control.log" or return;
	while (<$file>)
	{
		$calls[$1] = $2 if /^(\d+) (.*)$/;
	}
	return @calls;
}

# Is a call being held?  It goes on once it is disarmed, or armed with other numbers.
sub held
{
	my ($control) = @_;
	return -s "$control.log" ? 1 : 0;
}

1;
