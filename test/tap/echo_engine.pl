#!/usr/bin/perl
#
# echo_engine.pl: an engine that computes nothing, for tests of the database half.
#
# It speaks the HTTP of `pg_finetune_engine serve` (src/engine/README.md) and
# answers from the request alone:
#
#   "x y z"            echo: x y z
#   "sleep ..."        never (until its connection closes, which it says on stderr)
#   "later MS x"       echo: later MS x, after so many milliseconds
#   "gather N x"       echo: gather N x, when N of these wait
#   "tally"            how many chats it was asked for so far (but for tallies), and how
#                      many of those that wait waited at the same time since the last one
#   "cached N x"       echo: cached N x, N tokens of the prompt being from earlier ones
#   "die ..."          ends by SIGKILL
#   "full N"           busy when more than N chats wait, else as "later 20"
#   "fail CODE"        an error of that code
#   "broken KIND"      what is no reply, by %broken below
#
# Streams have a word in each piece:
#
#   "drip MS x y z"    a piece in each so many milliseconds
#   "stall N x y z"    nothing after N pieces
#   "cut N x y z"      the connection closes after N pieces
#   "halt N CODE"      an error of that code after N pieces
#   "odd KIND x y z"   ends with what is no event, by %odd below
#   "nothing"          an answer without text
#
# A model's file that begins with "bad" cannot be loaded.  An answer by an
# adapter begins with the adapter's file "prefix", so that a test sees whose
# weights were used.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use IO::Select;
use IO::Socket::UNIX;
use JSON::PP;
use Time::HiRes qw(time);

my %http_code = (
	invalid => 400, unsupported => 400, not_found => 404, mismatch => 409,
	corrupt => 422, busy => 429, no_memory => 503, device => 503,
	cancelled => 503, no_space => 507);

# Replies that no engine should send; the connection is closed after those in %closed.
my %broken = (
	garbage => "\x00\xff\r\n\r\n",
	head => "HTTP/1.1 200 OK\r\n" . "X-Header: y\r\n" x 10000,
	status => "HTTP/1.1 9999 OK\r\nContent-Length: 0\r\n\r\n",
	no_length => "HTTP/1.1 200 OK\r\n\r\n{}",
	negative => "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
	too_long => "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
	encoding => "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
	chunk_size => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
	chunk_end => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}}0\r\n\r\n",
	chunk_huge => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n{}",
	cut_head => "HTTP/1.1 200 OK\r\nContent-Le",
	cut_body => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{",
	empty => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	html => "HTTP/1.1 500 Oops\r\nContent-Length: 13\r\n\r\n<html></html>",
	map { ($_->[0] => "HTTP/1.1 200 OK\r\nContent-Length: " . length($_->[1]) . "\r\n\r\n$_->[1]") }
	  [ no_json => '{"choices"' ], [ array => '[1]' ], [ no_choices => '{"choices": []}' ],
	  [ no_text => '{"choices": [{"message": {"content": 1}, "finish_reason": "stop"}]}' ],
	  [ zero => '{"choices": [{"message": {"content": "a\u0000b"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}' ],
	  [ surrogate => '{"choices": "\ud800"}' ], [ not_utf8 => "{\"choices\": \"\xff\"}" ],
	  [ deep => '{"a":' x 100000 ]);
my %closed = (cut_head => 1, cut_body => 1);

my %odd = (
	field => "event: piece\n\n", no_json => "data: {\n\n", no_end => '', zero => qq(data: {"choices": [{"delta": {"content": "a\\u0000b"}}]}\n\n));

my $program = shift @ARGV // '';
my %option;
while (@ARGV)
{
	my ($name, $value) = splice(@ARGV, 0, 2);
	$option{$name} = $value;
}
exit 2 if $program ne 'serve' || !defined $option{'--socket'};

$| = 1;
$SIG{PIPE} = 'IGNORE';
my $json = JSON::PP->new->utf8->canonical;
my $path = $option{'--socket'};
unlink $path;
my $listener = IO::Socket::UNIX->new(Type => SOCK_STREAM, Local => $path, Listen => 128)
  or die "could not listen: $!\n";
open(my $control, '<&=', $option{'--control-fd'}) or die "no control pipe: $!\n";
print STDERR "listening, threads $option{'--threads'}\n";

my $select = IO::Select->new($listener, $control);
my (%buffer, %waiting, %base, %adapter);
my $requests = 0;
my ($chats, $most, $delay, @later) = (0, 0);    # @later: [time, client, reply]
my ($gather, @gathered);    # [client, reply]

while (1)
{
	@later = sort { $a->[0] <=> $b->[0] } @later;
	while (@later && $later[0][0] <= time)
	{
		my ($at, $client, $reply, $pause) = @{ shift @later };
		if (ref $reply)
		{
			go_on($client, $reply, $pause) if $waiting{$client};
			next;
		}
		next if !delete $waiting{$client};
		send_reply($client, 200, $reply);
		serve_client($client);
	}
	for my $handle ($select->can_read(@later ? $later[0][0] - time : undef))
	{
		exit 0 if $handle == $control;
		if ($handle == $listener)
		{
			my $client = $listener->accept or next;
			$select->add($client);
			$buffer{$client} = '';
			next;
		}
		my $got = sysread($handle, $buffer{$handle}, 65536, length $buffer{$handle});
		if (!$got)
		{
			print STDERR "a request was dropped\n" if delete $waiting{$handle};
			@gathered = grep { $_->[0] != $handle } @gathered;
			$select->remove($handle);
			delete $buffer{$handle};
			close $handle;
			next;
		}
		serve_client($handle);
	}
}

# Answer every request that has come in whole.
sub serve_client
{
	my ($client) = @_;

	while ($buffer{$client} =~ /^(\S+) (\S+) HTTP\/1\.1\r\n(.*?)\r\n\r\n/s)
	{
		my ($method, $route, $head, $end) = ($1, $2, $3, $+[0]);
		my ($length) = $head =~ /^content-length: *(\d+)/mi;
		$length //= 0;
		return if length($buffer{$client}) < $end + $length;
		my $body = substr($buffer{$client}, $end, $length);
		substr($buffer{$client}, 0, $end + $length) = '';
		if ($body =~ /"broken (\w+)/)
		{
			print $client $broken{$1};
			$client->flush;
			shutdown($client, 2) if $closed{$1};
			return;
		}
		my $request = $length ? $json->decode($body) : {};
		my ($status, $reply) = route("$method $route", $request);
		if (!defined $status || defined $delay || defined $gather)
		{
			$waiting{$client} = 1;
			$most = keys %waiting if keys %waiting > $most;
			push @later, [ time + $delay / 1000, $client, $json->encode($reply) ] if defined $delay;
			push @gathered, [ $client, $json->encode($reply) ] if defined $gather;
			if (defined $gather && @gathered >= $gather)
			{
				push @later, map { [ 0, @$_ ] } @gathered;
				@gathered = ();
			}
			($delay, $gather) = ();
			return;
		}
		if ($request->{stream} && $status == 200)
		{
			stream_reply($client, $request, $reply);
			return if $waiting{$client};
			next;
		}
		send_reply($client, $status, $json->encode($reply));
	}
}

sub chunk { return sprintf("%x\r\n%s\r\n", length $_[0], $_[0]); }

# The same answer as a stream of events.
sub stream_reply
{
	my ($client, $body, $reply) = @_;
	my $prompt = $body->{messages}[-1]{content};
	my ($how, $n) = $prompt =~ /^(drip|stall|cut|halt|odd) (\w+)/;
	my @pieces = $prompt eq 'nothing' ? () : split /(?<= )/, $reply->{choices}[0]{message}{content};
	my $usage = $reply->{usage};
	my ($tokens, @chunks) = (0);

	$how //= '';
	for my $delta ({ role => 'assistant', content => '' }, (map { { content => $_ } } @pieces), {})
	{
		$usage->{completion_tokens} = $tokens;
		push @chunks, 'data: ' . $json->encode({ choices => [ { index => 0, delta => $delta } ], usage => $usage }) . "\n\n";
		$tokens++ if $tokens < @pieces;
	}
	push @chunks, 'data: ' . $json->encode({ choices => [], usage => $usage }) . "\n\n", "data: [DONE]\n\n";
	splice(@chunks, $n + 1) if $how =~ /^(stall|cut|halt)$/;
	push @chunks, 'data: ' . $json->encode((failure($prompt =~ /^halt \d+ (\w+)/, 'as asked for'))[1]) . "\n\n", "data: [DONE]\n\n"
	  if $how eq 'halt';
	splice(@chunks, -2, 2, $odd{$n} || ()) if $how eq 'odd';
	@chunks = map { chunk($_) } @chunks;
	push @chunks, $how =~ /^(stall|cut)$/ ? $how : "0\r\n\r\n";
	print $client "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
	$waiting{$client} = 1;
	go_on($client, \@chunks, $how eq 'drip' ? $n / 1000 : undef);
}

# Send the next chunk of a stream, or without a pause between them all.
sub go_on
{
	my ($client, $chunks, $pause) = @_;

	while (@$chunks)
	{
		my $chunk = shift @$chunks;

		return if $chunk eq 'stall';
		return shutdown($client, 2) if $chunk eq 'cut';
		print $client $chunk;
		$client->flush;
		return push @later, [ time + $pause, $client, $chunks, $pause ] if defined $pause && @$chunks;
	}
	delete $waiting{$client};
	serve_client($client) if defined $pause;
}

# Every second reply is chunked, in small pieces.
sub send_reply
{
	my ($client, $status, $text) = @_;
	my $head = "HTTP/1.1 $status Whatever\r\nContent-Type: application/json\r\n";

	if ($requests++ % 2)
	{
		my $chunks = join '', map { sprintf("%x\r\n%s\r\n", length, $_) } unpack('(a7)*', $text);
		print $client "${head}Transfer-Encoding: chunked\r\n\r\n${chunks}0\r\n\r\n";
	}
	else
	{
		print $client $head . 'Content-Length: ' . length($text) . "\r\n\r\n$text";
	}
	$client->flush;
}

sub failure
{
	my ($code, $message) = @_;

	return ($http_code{$code} // 500,
		{ error => { message => $message, type => 'test', code => $code } });
}

sub slurp
{
	my ($file) = @_;

	open(my $handle, '<:raw', $file) or return undef;
	local $/;
	return scalar <$handle>;
}

# A status and what to reply; an empty list for never.
sub route
{
	my ($what, $body) = @_;

	return (200, { status => 'ok' }) if $what eq 'GET /health';
	return load_model($body) if $what eq 'POST /v1/load_model';
	return load_adapter($body) if $what eq 'POST /v1/load_lora_adapter';
	if ($what eq 'POST /inspect')
	{
		return failure('not_found', "could not open $body->{path}") if !-e $body->{path};
		return failure('corrupt', "$body->{path} is truncated") if $body->{path} =~ m{/bad[^/]*$};
		return (200, { architecture => 'echo', parameters => 7, context_length => 512 });
	}

	my $model = $body->{model};
	my $prefix = $base{$model} ? '' : $adapter{$model};
	return failure('not_found', "model \"$model\" is not loaded") if !defined $prefix;
	if ($what eq 'POST /tokenize')
	{
		my @words = split ' ', $body->{prompt};
		return (200, { count => scalar @words, max_model_len => 512, tokens => [ 1 .. @words ] });
	}
	if ($what eq 'POST /detokenize')
	{
		return (200, {}) if "@{ $body->{tokens} }" eq '666';
		return (200, { prompt => join ' ', map { "word$_" } @{ $body->{tokens} } });
	}
	return chat($body, $prefix) if $what eq 'POST /v1/chat/completions';
	return failure('not_found', "no route $what");
}

sub load_model
{
	my ($body) = @_;

	return failure('corrupt', "$body->{path} is truncated") if $body->{path} =~ m{/bad[^/]*$};
	my $contents = slurp($body->{path});
	my $digest = sha256_hex($contents);
	return failure('mismatch', "$body->{path} is another file")
	  if defined $body->{digest} && $body->{digest} ne $digest;
	$base{ $body->{model} } = $contents;
	print STDERR "loaded a base\n";
	return (200, { model => $body->{model}, architecture => 'echo', digest => $digest });
}

sub load_adapter
{
	my ($body) = @_;
	my $base = $base{ $body->{base_model_name} };

	return failure('not_found', 'the base is not loaded') if !defined $base;
	return failure('mismatch', 'the base is another')
	  if defined $body->{base_digest} && $body->{base_digest} ne $base;
	$adapter{ $body->{lora_name} } = slurp("$body->{lora_path}/prefix") // '';
	print STDERR "loaded an adapter\n";
	return (200, {});
}

sub chat
{
	my ($body, $prefix) = @_;
	my $prompt = $body->{messages}[-1]{content};
	my @words = split ' ', join(' ', map { $_->{content} } @{ $body->{messages} });
	my $limit = $body->{max_tokens} // 4096;

	if ($prompt eq 'tally')
	{
		$prompt = "$chats $most";
		$most = 0;
	}
	else
	{
		$chats++;
	}
	return () if $prompt =~ /^sleep/;
	$delay = $1 if $prompt =~ /^later (\d+)/;
	$gather = $1 if $prompt =~ /^gather (\d+)/;
	if ($prompt =~ /^full (\d+)/)
	{
		return failure('busy', 'the queue is full') if keys %waiting >= $1;
		$delay = 20;
	}
	kill 'KILL', $$ if $prompt =~ /^die/;
	return failure($1, 'as asked for') if $prompt =~ /^fail (\w+)/;

	# "show KEY" answers with that member of the request
	my $answer = $prompt =~ /^show (\w+)/ ? $json->encode([ $body->{$1} ]) : "echo: $prompt";
	my @answer = split ' ', $answer;
	my $cut = @answer > $limit;
	$answer = join ' ', @answer[ 0 .. $limit - 1 ] if $cut;
	return (
		200,
		{
			created => 1700000000,
			choices => [
				{
					index => 0,
					message => { role => 'assistant', content => $prefix . $answer },
					finish_reason => $cut ? 'length' : 'stop'
				}
			],
			usage => {
				prompt_tokens => scalar @words,
				completion_tokens => scalar($cut ? $limit : @answer),
				total_tokens => scalar @words + ($cut ? $limit : @answer),
				$prompt =~ /^cached (\d+)/ ? (prompt_tokens_details => { cached_tokens => $1 + 0 }) : ()
			}
		});
}
