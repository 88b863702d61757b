#!/usr/bin/perl
#
# endpoint_server.pl PORTFILE: an OpenAI-compatible server that computes nothing.
#
# It listens on a port of 127.0.0.1, which it writes into PORTFILE, and does what
# the last message of a chat says:
#
#   "show body"        the request's body, as JSON with sorted keys
#   "show key"         the Authorization header, "none" without
#   "show path"        the request's line
#   "later MS x"       an echo after so many milliseconds
#   "gather N x"       an echo when N of these wait
#   "never"            nothing
#   "tally"            how many "never" wait, and have gone away
#   "busy N AFTER C"   N times status C with Retry-After: AFTER, then an echo
#   "status CODE JSON" that status, with that body
#   "answer JSON"      status 200 with that body
#   "redirect URL"     307 to there
#   "huge"             a body without an end
#   "cut", "nothing", "garbage", "drip"   half a body; none; no HTTP; a head without an end
#   anything else      echo: it, n times, with log-probabilities if they are asked for
use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use Time::HiRes qw(time);

my ($port_file) = @ARGV;
my $json     = JSON::PP->new->utf8->canonical->allow_nonref;
my $listener = IO::Socket::INET->new(Listen => 1024, LocalAddr => '127.0.0.1', LocalPort => 0, ReuseAddr => 1)
  or die "could not listen: $!\n";
my $select = IO::Select->new($listener);
my (%buffer, %never, %refused, %out, @later, @gathered);
my $gone = 0;

$| = 1;
$SIG{PIPE} = 'IGNORE';
open my $file, '>', "$port_file.new" or die "$port_file: $!\n";
print $file $listener->sockport;
close $file or die "$port_file: $!\n";
rename "$port_file.new", $port_file or die "$port_file: $!\n";

while (1)
{
	@later = sort { $a->[0] <=> $b->[0] } @later;
	while (@later && $later[0][0] <= time)
	{
		my (undef, $client, $reply) = @{ shift @later };
		send_text($client, $reply) if exists $buffer{$client};
	}
	my $wait = @later ? $later[0][0] - time : undef;
	$wait = 0.01 if %out;
	write_out($_) for keys %out;
	for my $handle ($select->can_read($wait))
	{
		if ($handle == $listener)
		{
			my $client = $listener->accept or next;
			$client->blocking(0);
			$select->add($client);
			$buffer{$client} = '';
			next;
		}
		my $got = sysread($handle, $buffer{$handle}, 65536, length $buffer{$handle});
		next if !defined $got && $!{EAGAIN};
		if (!$got)
		{
			close_client($handle);
			next;
		}
		serve($handle);
	}
}

sub close_client
{
	my ($client) = @_;
	$gone++ if delete $never{$client};
	@gathered = grep { $_->[0] != $client } @gathered;
	delete $out{$client};
	delete $buffer{$client};
	$select->remove($client);
	close $client;
	return;
}

# What does not fit into the socket is sent bit by bit.
sub send_text
{
	my ($client, $text, $then_close) = @_;
	$out{$client}{client} = $client;
	$out{$client}{text} .= $text;
	$out{$client}{close} = 1 if $then_close;
	write_out($client);
	return;
}

sub write_out
{
	my ($name) = @_;
	my $o = $out{$name} or return;
	while (length $o->{text})
	{
		my $n = syswrite($o->{client}, $o->{text}, 262144);
		return if !defined $n && $!{EAGAIN};
		last   if !$n;
		substr($o->{text}, 0, $n) = '';
		$o->{text} .= 'x' x 262144 if $o->{endless};
	}
	delete $out{$name};
	close_client($o->{client}) if $o->{close};
	return;
}

sub http
{
	my ($status, $body, @headers) = @_;
	return join("\r\n", "HTTP/1.1 $status Any", 'Content-Type: application/json', 'Content-Length: ' . length $body, @headers, '', $body);
}

sub serve
{
	my ($client) = @_;
	while (exists $buffer{$client} && $buffer{$client} =~ /\A(.*?)\r\n\r\n/s)
	{
		my ($head, $from) = ($1, $+[0]);
		my ($length) = $head =~ /^Content-Length: (\d+)/im;
		$length //= 0;
		return if length($buffer{$client}) < $from + $length;
		my $body = substr($buffer{$client}, $from, $length);
		substr($buffer{$client}, 0, $from + $length) = '';
		answer($client, $head, $body);
	}
	return;
}

sub chat
{
	my ($asked, $text) = @_;
	my @choices = map {
		{   index => $_,
			message => { role => 'assistant', content => $text },
			finish_reason => 'stop',
			(   $asked->{logprobs}
				? (logprobs => { content => [ { token => 'a', logprob => -0.5, bytes => [97], top_logprobs => [] } ] })
				: ())
		}
	} 0 .. ($asked->{n} // 1) - 1;
	return http(
		200,
		$json->encode(
			{   id => 'x', object => 'chat.completion', created => 1700000000, model => $asked->{model}, choices => \@choices,
				usage => { prompt_tokens => 7, completion_tokens => 3, total_tokens => 10, prompt_tokens_details => { cached_tokens => 2 } }
			}));
}

sub answer
{
	my ($client, $head, $body) = @_;
	my $asked = eval { $json->decode($body) };
	my $text  = eval { $asked->{messages}[-1]{content} } // '';
	my ($word, $rest) = $text =~ /\A(\S+)(?: (.*))?\z/s ? ($1, $2 // '') : ('', '');

	if ($text eq 'show body') { send_text($client, chat($asked, $json->encode($asked))) }
	elsif ($text eq 'show key') { send_text($client, chat($asked, $head =~ /^Authorization: (.*?)\r?$/im ? $1 : 'none')) }
	elsif ($text eq 'show path') { send_text($client, chat($asked, (split /\r\n/, $head)[0])) }
	elsif ($text eq 'never') { $never{$client} = 1 }
	elsif ($text eq 'tally') { send_text($client, chat($asked, keys(%never) . " $gone")) }
	elsif ($word eq 'later' && $rest =~ /\A(\d+)/) { push @later, [ time + $1 / 1000, $client, chat($asked, "echo: $text") ] }
	elsif ($word eq 'gather' && $rest =~ /\A(\d+)/)
	{
		push @gathered, [ $client, chat($asked, "echo: $text") ];
		return if @gathered < $1;
		send_text(@$_) for splice @gathered;
	}
	elsif ($word eq 'busy' && $rest =~ /\A(\d+) (\d+) (\d+)/)
	{
		send_text($client, $refused{$text}++ < $1
			? http($3, '{"error": {"message": "too many", "code": "rate_limit_exceeded"}}', "Retry-After: $2")
			: chat($asked, "echo: $text after $1"));
	}
	elsif ($word eq 'status' && $rest =~ /\A(\d+) ?(.*)/s) { send_text($client, http($1, $2)) }
	elsif ($word eq 'answer') { send_text($client, http(200, $rest)) }
	elsif ($word eq 'redirect') { send_text($client, http(307, '', "Location: $rest")) }
	elsif ($word eq 'huge')
	{
		$out{$client} = { client => $client, text => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", endless => 1 };
	}
	elsif ($word eq 'cut') { send_text($client, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"choices\":", 1) }
	elsif ($word eq 'drip') { send_text($client, "HTTP/1.1 200 OK\r\nX: y", 1) }
	elsif ($word eq 'garbage') { send_text($client, "\x01\x02 what is this?\r\n\r\n", 1) }
	elsif ($word eq 'nothing') { close_client($client) }
	else { send_text($client, chat($asked, "echo: $text")) }
	return;
}
