#!/usr/bin/perl
# engine_files.pl: the table of src/engine/README.md names every file of the
# engine once, and none that is not there.
#
#   perl test/engine_files.pl
use strict;
use warnings;

open my $readme, '<', 'src/engine/README.md' or die "src/engine/README.md: $!\n";
my ($inside, %named, @wrong);
while (my $line = <$readme>)
{
	$inside = $1 eq 'Files' if $line =~ /^## (.*)/;
	next if !$inside || $line !~ /^\|[^|]*\|([^|]*)\|/;
	$named{$_}++ for $1 =~ /`([^`]+)`/g;
}
for my $file (map { s{.*/}{}r } glob('src/engine/*.c'))
{
	my $name = $file =~ s/\.c$//r;
	my $times = delete $named{$name} // 0;
	push @wrong, "$file stands there $times times, expected once" if $times != 1;
}
for my $name (sort keys %named)
{
	push @wrong, "$name is there, but no such file" if !-e "src/engine/$name";
}
print "$_\n" for @wrong;
exit(@wrong > 0);
