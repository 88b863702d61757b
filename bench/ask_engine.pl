# ask_engine.pl: requests over the engine's socket, one after the other on one connection.
#
#   ask_engine.pl SOCKET models      the names of what it serves
#   ask_engine.pl SOCKET MODEL N     milliseconds of each of N chat requests for one token
use strict;
use warnings;

use IO::Socket::UNIX;
use JSON::PP;
use Time::HiRes qw(time);

my ($path, $model, $n) = @ARGV;
my $socket = IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => $path) or die "$path: $!\n";

# The body of the answer
sub ask
{
	my ($request) = @_;
	my $text = '';
	syswrite($socket, $request) == length $request or die "could not write: $!\n";
	while ($text !~ /\A(.*?\r\n\r\n)/s || length($text) < $+[0] + ($1 =~ /^Content-Length: (\d+)/im)[0])
	{
		sysread($socket, $text, 65536, length $text) or die "the engine ended the connection\n";
	}
	die $text if $text !~ m{\AHTTP/1.1 200 };
	return substr($text, index($text, "\r\n\r\n") + 4);
}

if ($model eq 'models')
{
	print "$_->{id}\n" for @{ decode_json(ask("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"))->{data} };
	exit;
}
for (1 .. $n)
{
	my $body = encode_json({ model => $model, max_tokens => 1, temperature => 0,
			messages => [ { role => 'user', content => 'Say yes.' } ] });
	my $start = time;
	ask("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " . length($body) . "\r\n\r\n$body");
	printf "%.4f\n", 1000 * (time - $start);
}
