# 206_tcp.pl: `serve --listen`: who shows the key is answered, and nobody else; and /metrics.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP ();
use Test::More;

use ServeTest;
use TinyModel;

my ($status, $reply);
my $key = 'sk-' . 'x1Y2' x 8;

sub write_key
{
	my ($path, $text, $mode) = @_;
	unlink $path;
	open my $fh, '>', $path or die "$path: $!";
	print $fh $text;
	close $fh;
	chmod $mode // 0600, $path;
	return $path;
}

my $scratch = File::Temp->newdir;
my $file    = write_key("$scratch/key", "$key\n");
my $engine  = ServeTest->new(args => [ '--listen', '127.0.0.1:0', '--api-key-file', $file ]);
my ($port)  = $engine->log_text =~ /listening on "127\.0\.0\.1", port (\d+)/;
ok($port, 'it says which port it listens on');
write_model("$engine->{folder}/tiny.gguf");

sub ask
{
	my ($method, $path, $body, $authorization) = @_;
	my $r = HTTP::Tiny->new(timeout => 60)->request(
		$method, "http://127.0.0.1:$port$path",
		{   headers => { ($authorization ? (Authorization => $authorization) : ()), 'Content-Type' => 'application/json' },
			($body ? (content => JSON::PP->new->canonical->encode($body)) : ())
		});
	return ($r->{status}, eval { JSON::PP->new->utf8->decode($r->{content}) } // $r->{content});
}

# --- the key ----------------------------------------------------------------------------------

my %load = (model => 'a "model"', path => "$engine->{folder}/tiny.gguf");
my %ask  = (model => 'a "model"', prompt => 'Hello', max_tokens => 8);
($status) = $engine->post('/v1/load_model', \%load);
is($status, 200, 'the owner loads a model without a key');
($status, $reply) = $engine->post('/v1/completions', \%ask);
is($status, 200, 'and asks it');
my $text = $reply->{choices}[0]{text};

($status, $reply) = ask('POST', '/v1/completions', \%ask, "Bearer $key");
is($status, 200, 'with the key an answer comes over TCP');
is($reply->{choices}[0]{text}, $text, 'the same one');
($status, $reply) = ask('GET', '/v1/models', undef, "bearer $key");
is($reply->{data}[0]{id}, 'a "model"', 'models are listed');
for my $shown (undef, 'Bearer ', "Bearer ${key}x", 'Bearer ' . substr($key, 0, -1), $key, "Basic $key", 'Bearer ' . 'a' x 5000)
{
	my $name = defined $shown ? substr($shown, 0, 50) : 'nothing';
	($status, $reply) = ask('POST', '/v1/completions', \%ask, $shown);
	is($status, 401, "no answer for $name");
	is($reply->{error}{code}, 'invalid_api_key', "and $name is told why");
	($status) = ask('GET', '/metrics', undef, $shown);
	is($status, 401, "nor metrics for $name");
}
($status, $reply) = ask('GET', '/health');
is($status, 200, 'health is for everybody');

for my $route ('/v1/load_model', '/v1/load_lora_adapter', '/v1/unload_lora_adapter', '/inspect')
{
	($status) = ask('POST', $route, \%load, "Bearer $key");
	is($status, 404, "$route is the owner's alone");
}
unlike($engine->log_text, qr/\Q$key/, 'the key is in no line of the log');

# --- metrics ----------------------------------------------------------------------------------

my (undef, $metrics) = ask('GET', '/metrics', undef, "Bearer $key");
like($metrics, qr/^pg_finetune_tokens_total 16$/m, 'tokens are counted');
like($metrics, qr/^pg_finetune_prompt_tokens_total 10$/m, 'those of prompts, too');
like($metrics, qr/^pg_finetune_requests_running 0$/m, 'nothing runs');
like($metrics, qr/^pg_finetune_cache_blocks_used\{model="a \\"model\\""\} 0$/m, 'no block is used, of a model whose name is quoted');
my @lines = split /\n/, $metrics;
is(scalar(grep { !/\A(?:# (?:HELP|TYPE) pg_finetune_\w+ .+|pg_finetune_\w+(?:\{model="(?:[^"\\]|\\.)*"\})? \d+)\z/ } @lines), 0, 'every line is one of Prometheus');
my %types = map { /\A# TYPE (\S+) (\S+)/ ? ($1 => $2) : () } @lines;
is(scalar(grep { my ($name) = /\A(\w+)/; !$types{$name} } grep { !/\A#/ } @lines), 0, 'every value has a type');
($status, $reply) = $engine->get('/metrics');
is($status, 200, 'the owner has them without a key');
is($engine->stop, 0, 'the engine ends well');

# --- what is refused --------------------------------------------------------------------------

sub refused
{
	my ($args, $code, $message, $name) = @_;
	my $got = system("$engine->{engine} serve --socket $scratch/s @$args 2>$scratch/err");
	is($got >> 8, $code, "$name: exit code");
	like(do { local (@ARGV, $/) = "$scratch/err"; <> }, $message, "$name: message");
	return;
}
refused([ '--listen', '127.0.0.1:0' ], 2, qr/--listen needs --api-key-file/, 'no key');
refused([ '--listen', '127.0.0.1:0', '--api-key-file', "$scratch/none" ], 1, qr/could not open ".*none"/, 'no file');
refused([ '--listen', '127.0.0.1:0', '--api-key-file', write_key("$scratch/open", $key, 0644) ], 1,
	qr/key file ".*open" has group or world access/, 'a file for everybody');
refused([ '--listen', '127.0.0.1:0', '--api-key-file', write_key("$scratch/short", "abc\n") ], 1,
	qr/the key in ".*short" has 3 characters, expected 16 to 1023/, 'a short key');
refused([ '--listen', '127.0.0.1:0', '--api-key-file', "$scratch" ], 1, qr/".*" is no file/, 'a directory');
refused([ '--listen', '127.0.0.1', '--api-key-file', $file ], 1, qr/--listen is "127\.0\.0\.1", expected HOST:PORT/, 'no port');
refused([ '--listen', '127.0.0.1:http', '--api-key-file', $file ], 1, qr/could not find address "127\.0\.0\.1:http"/, 'a port by name');

done_testing();
