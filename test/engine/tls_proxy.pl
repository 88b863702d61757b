#!/usr/bin/perl
#
# tls_proxy.pl PORTFILE PORT CERTIFICATE KEY: TLS on a port of 127.0.0.1 in front of
# another one.  A process for each connection.
use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::SSL;

my ($port_file, $port, $certificate, $key) = @ARGV;
my $listener = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', LocalPort => 0, ReuseAddr => 1)
  or die "could not listen: $!\n";

$SIG{CHLD} = 'IGNORE';
$SIG{PIPE} = 'IGNORE';
open my $file, '>', "$port_file.new" or die "$port_file: $!\n";
print $file $listener->sockport;
close $file or die "$port_file: $!\n";
rename "$port_file.new", $port_file or die "$port_file: $!\n";

while (1)
{
	my $client = $listener->accept or next;
	if (!defined(my $pid = fork)) { die "fork: $!\n" }
	elsif ($pid == 0) { serve($client); exit 0 }
	close $client;
}

sub serve
{
	my ($plain) = @_;
	my $client = IO::Socket::SSL->start_SSL($plain, SSL_server => 1, SSL_cert_file => $certificate, SSL_key_file => $key)
	  or return;
	my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or return;
	my $select = IO::Select->new($plain, $server);

	while (1)
	{
		for my $ready ($select->can_read)
		{
			my ($from, $to) = $ready == $server ? ($server, $client) : ($client, $server);
			do
			{
				my $bytes;
				return if !sysread($from, $bytes, 16384);
				return if !defined $to->syswrite($bytes);
			} while ($from == $client && $client->pending);
		}
	}
	return;
}
