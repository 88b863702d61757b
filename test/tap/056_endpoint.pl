# Base models that another server answers for: what it is asked, whose key it is
# shown, what its faults become, and what is not to be had of such a model.
use strict;
use warnings;

use lib "$ENV{TESTDIR}/test/engine";

use Endpoint;
use File::Copy;
use FinetuneCluster;
use FinetuneJob;
use JSON::PP;
use PostgreSQL::Test::Utils;
use ServeTest;
use Test::More;
use TinyModel;

my $canary = 'kanarie' . 'nvogel';
my $secret = 'sk-' . 'geheim' x 4;
my $server = Endpoint->new;
my $url    = $server->url;
my $node   = new_node('endpoint', <<'CONF');
log_statement = none
log_min_messages = debug1
log_min_error_statement = panic
log_error_verbosity = verbose
pg_finetune.request_timeout = '60s'
CONF
my $data = $node->data_dir;

sub answer { return $node->safe_psql('postgres', $_[0], extra_params => [ '-U', $_[1] // $node->{_user} // getpwuid($<) ]) }

sub fails
{
	my ($sql, $state, $pattern, $name, %with) = @_;
	my ($got, $words) = sqlstate_of($node, $sql, %with);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
	like($words, $with{hint}, "$name: hint") if $with{hint};
	unlike($words, qr/\Q$secret/, "$name: no key");
	return;
}

sub create
{
	my ($name, $options) = @_;
	return qq(CREATE SERVER $name TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS ($options));
}

$node->safe_psql('postgres', <<"SQL");
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
@{[create('gpt', "endpoint '$url', remote_model 'big/model-1'")]};
GRANT USAGE ON FOREIGN SERVER gpt TO alice, bob;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice;
CREATE USER MAPPING FOR alice SERVER gpt OPTIONS (api_key '$secret-alice');
CREATE TABLE p (t text);
INSERT INTO p VALUES ('$canary');
GRANT SELECT ON p TO PUBLIC;
SQL

# --- Answers

is(answer(q(SELECT complete('gpt', 'hello'))), 'echo: hello', 'an answer');
is( answer(q(SELECT complete('gpt', 'hello', '{}'))),
	'{"model": "gpt", "usage": {"total_tokens": 10, "prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}, '
	  . '"choices": [{"messages": "echo: hello", "finish_reason": "stop"}], "created": 1700000000}',
	'with its numbers');
my $body = decode_json(answer(q(SELECT complete('gpt', 'show body'))));
is_deeply(
	$body,
	{ model => 'big/model-1', temperature => 0, messages => [ { role => 'user', content => 'show body' } ] },
	'what is asked: the model by its name there, greedily');
$body = decode_json(
	answer(
		q(SELECT complete('gpt', messages => '[{"role": "system", "content": "s"}, {"role": "user", "content": "show body"}]',
			options => '{"temperature": 0.5, "top_p": 0.5, "max_tokens": 5, "stop": "a", "seed": 7, "n": 2, "logprobs": true, "top_logprobs": 1,
				"response_format": {"type": "json", "schema": {"type": "object"}}}') #>> '{choices,1,messages}')));
is_deeply(
	$body,
	{   model => 'big/model-1', temperature => 0.5, top_p => 0.5, max_tokens => 5, stop => ['a'], seed => 7, n => 2,
		logprobs => JSON::PP::true, top_logprobs => 1,
		messages => [ { role => 'system', content => 's' }, { role => 'user', content => 'show body' } ],
		response_format => { type => 'json_schema', json_schema => { name => 'answer', strict => JSON::PP::true, schema => { type => 'object' } } }
	},
	'a conversation and options');
is( answer(q(SELECT complete('gpt', 'x', '{"logprobs": true}') #> '{choices,0,logprobs,content,0,logprob}')),
	'-0.5', 'log-probabilities');
fails(q(SELECT complete('gpt', 'x', '{"temprature": 1}')), '22023', qr/unrecognized option "temprature"/, 'an option that is none');
is(answer("SELECT complete('gpt', 'Grüße, 世界')"), 'echo: Grüße, 世界', 'text beyond ASCII');
is( answer(q(SELECT name, kind, status, owner = current_user, size IS NULL, storage FROM finetune.models WHERE name = 'gpt')),
	'gpt|base|ready|t|t|endpoint', 'finetune.models says where it is');

# --- Keys and rights

is(answer(q(SELECT complete('gpt', 'show key')), 'alice'), "Bearer $secret-alice", 'the key of who asks');
is(answer(q(SELECT complete('gpt', 'show key')), 'bob'), 'none', 'none, where there is none');
answer("CREATE USER MAPPING FOR PUBLIC SERVER gpt OPTIONS (api_key '$secret-public')");
is(answer(q(SELECT complete('gpt', 'show key')), 'bob'), "Bearer $secret-public", 'or that of everybody');
answer("ALTER USER MAPPING FOR alice SERVER gpt OPTIONS (SET api_key '$secret-new')");
is(answer(q(SELECT complete('gpt', 'show key')), 'alice'), "Bearer $secret-new", 'a changed one at once');
answer(q(CREATE FUNCTION as_alice() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$SELECT complete('gpt', 'show key')$$;
	ALTER FUNCTION as_alice() OWNER TO alice));
is(answer(q(SELECT as_alice()), 'bob'), "Bearer $secret-new", 'a function of hers shows hers');
fails(q(SELECT complete('gpt', 'x')), '42501', qr/permission denied for foreign server gpt/, 'without USAGE', user => 'carol');
is(answer(q(SELECT string_agg(coalesce(umoptions::text, 'hidden'), ' ' ORDER BY usename) FROM pg_user_mappings WHERE srvname = 'gpt'), $_),
	'hidden hidden', "$_ sees no key")
  for qw(bob carol);
fails('SELECT umoptions FROM pg_user_mapping', '42501', qr/permission denied for table pg_user_mapping/, 'the catalog', user => 'bob');
is(answer(q(SELECT count(*) FROM information_schema.user_mapping_options WHERE option_value IS NOT NULL), 'bob'), '0', 'nor in information_schema');

my $super = qr/must be superuser to create or alter a model behind an endpoint/;
fails(create('mine', "endpoint 'https://example.com', remote_model 'm'"), '42501',
	qr/must be superuser to create or alter a model behind an endpoint/, 'CREATE SERVER by others', user => 'alice');
answer('ALTER SERVER gpt OWNER TO alice');
fails(q(ALTER SERVER gpt OPTIONS (SET endpoint 'https://evil.example')), '42501', $super, 'ALTER SERVER by its owner', user => 'alice');
fails(q(ALTER SERVER gpt OPTIONS (ADD allow_http 'true')), '42501', $super, 'nor its other options', user => 'alice');
fails(q(ALTER SERVER gpt OPTIONS (DROP endpoint, DROP remote_model, ADD file 'tiny.gguf')), '0A000',
	qr/base model "gpt" cannot change between a file and an endpoint/, 'an endpoint that becomes a file', user => 'alice');
fails(q(ALTER SERVER tiny OPTIONS (DROP file, ADD endpoint 'https://example.com', ADD remote_model 'm')), '0A000',
	qr/base model "tiny" cannot change between a file and an endpoint/, 'a file that becomes an endpoint');
is(answer(q(SELECT complete('gpt', 'x')), 'bob'), 'echo: x', 'it goes on');

# --- Faults

# Read from a table, so that no statement holds the canary
sub fault
{
	my ($prompt, $state, $pattern, %with) = @_;
	my $name = substr($prompt, 0, 50);
	my $quoted = $node->safe_psql('postgres', "SELECT quote_literal('$prompt ')");
	my $sql = ($with{set} // '') . "SELECT complete('gpt', $quoted || t) FROM p";
	fails($sql, $state, qr/model "gpt": $pattern/, $name, user => 'alice', hint => $with{hint});
	return;
}

my $hint = qr/HINT:  The key is option "api_key" of the user mapping of role "alice", or of PUBLIC, for server "gpt"/;
fault('status 401 denied', '28000', qr/the endpoint does not accept the API key \(HTTP status 401\)/, hint => $hint);
fault('status 403 denied', '28000', qr/the endpoint does not permit the request \(HTTP status 403\)/, hint => $hint);
fault('status 400 bad',    '22023', qr/the endpoint refuses the request \(HTTP status 400\)/);
fault('status 404 none',   '22023', qr/the endpoint has no such model, or no chat completions at this URL \(HTTP status 404\)/);
fault('status 500 oops',   '58000', qr/the endpoint has failed \(HTTP status 500\)/);
fault('status 402 pay',    '53000', qr/the endpoint takes no more requests \(HTTP status 402\)/, hint => qr/HINT:  What its key may spend is used up/);
fault('busy 9 0 503',      '53000', qr/the endpoint takes no more requests \(HTTP status 503\)/, hint => qr/HINT:  Try again later/,
	set => q(SET pg_finetune.request_timeout = '900ms';));
fault('busy 9 3600 429',   '53000', qr/the endpoint takes no more requests \(HTTP status 429\)/, hint => qr/HINT:  Try again in 3600 seconds/);
fault('redirect http://127.0.0.1:1/v1', '08P01', qr/the endpoint answers with a redirection \(HTTP status 307\)/);
fault('huge',    '08P01', qr/the endpoint's answer is longer than 16777216 bytes/);
fault('cut',     '08P01', qr/the endpoint's answer is broken/);
fault('garbage', '08P01', qr/the endpoint's answer is broken/);
fault('answer {"choices": [', '08P01', qr/the endpoint's answer is no chat completion: it is no JSON object/);
fails(q(SET pg_finetune.request_timeout = '300ms'; SELECT complete('gpt', 'never')), '57P03',
	qr/model "gpt": the endpoint did not answer in time/, 'one that is late');
fails(q(SELECT complete('gpt', 'status 400 {"error": {"message": "no top_k here"}}', '{"top_k": 3}')), '22023',
	qr/model "gpt": the endpoint refuses the option "top_k" \(HTTP status 400\)/, 'an option that is unknown there');
fails(q(SELECT complete('gpt', 'answer {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}', '{"n": 2}')), '0A000',
	qr/model "gpt": the endpoint ignores the option "n": it gives 1 answers of 2/, 'one that is ignored');
is(answer(q(SELECT try_complete('gpt', 'status 500 x') IS NULL AND try_complete('gpt', 'cut') IS NULL)), 't', 'try_complete gives null');
is(answer(q(SELECT complete('gpt', 'busy 1 0 429'))), 'echo: busy 1 0 429 after 1', 'one that had no room for a moment');

my $dead = Endpoint->new;
$dead->stop;
answer(create('gone', "endpoint '@{[$dead->url]}', remote_model 'm'"));
fails(q(SELECT complete('gone', 'x')), '08001', qr/model "gone": could not connect to the endpoint "http:\/\/127\.0\.0\.1:\d+": /, 'nobody there');

# --- Many at once, and cancels

answer(q(SET pg_finetune.batch_rows = 32; SELECT count(complete('gpt', 'x'))));
is( answer(
		q(SET pg_finetune.batch_rows = 32; SELECT count(*) FROM (SELECT complete('gpt', 'gather 16 ' || i) AS c, i FROM generate_series(1, 64) i) s WHERE c = 'echo: gather 16 ' || i)
	),
	'64', 'rows in flight reach the endpoint together');

sub tally { return answer(q(SELECT complete('gpt', 'tally'))) }
my $gone = (split ' ', tally())[1];
fails(q(SET statement_timeout = '300ms'; SELECT complete('gpt', 'never')), '57014', qr/canceling statement due to statement timeout/, 'a cancel');
ok(wait_until(sub { tally() eq '0 ' . ($gone + 1) }), 'the endpoint is told');
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query('SELECT pg_backend_pid()');
$session->{stdin} .= "SELECT complete('gpt', 'never');\n";
$session->{run}->pump_nb;
ok(wait_until(sub { tally() =~ /^1 / }), 'one waits');
answer("SELECT pg_terminate_backend($pid)");
ok(wait_until(sub { tally() eq '0 ' . ($gone + 2) }), 'a session that ends takes it along');
eval { $session->{run}->finish };

# --- TLS

my $certificates = $node->basedir . '/certificates';
mkdir $certificates or die;
Endpoint::certificates($certificates);
my $tls = Endpoint->new(tls => $server->{port}, certificates => $certificates, name => 'good');
my $tls_url = $tls->url('localhost', 'https');
answer(create('tls', "endpoint '$tls_url', remote_model 'm'"));
fails(q(SELECT complete('tls', 'x')), '08001', qr/model "tls": could not connect to the endpoint "https:\/\/localhost:\d+": SSL certificate problem/,
	'an authority that nobody knows', hint => qr/HINT:  The endpoint's certificate must be for this host/);
answer(q(ALTER SERVER tls OPTIONS (ADD sslrootcert 'endpoint_ca.crt')));
fails(q(SELECT complete('tls', 'x')), '58030', qr/model "tls": could not open the file that "sslrootcert" names: No such file/, 'a file that is not there');
copy("$certificates/ca.crt", "$data/endpoint_ca.crt") or die;
is(answer(q(SELECT complete('tls', 'x'))), 'echo: x', 'one that is named');
my $other = Endpoint->new(tls => $server->{port}, certificates => $certificates, name => 'other');
answer("ALTER SERVER tls OPTIONS (SET endpoint '@{[$other->url('localhost', 'https')]}')");
fails(q(SELECT complete('tls', 'x')), '08001', qr/SSL: no alternative certificate subject name matches/, 'a certificate for another host');

# --- What is not to be had

my $not_here = qr/model "gpt" is behind an endpoint: its weights are not here/;
my $no_base  = qr/model "gpt" is behind an endpoint and cannot be tuned here/;
fails(q(SELECT finetune('CREATE', 'm', 'gpt', 'TABLE fact')), '0A000', qr/model "gpt" is behind an endpoint and cannot be tuned here/, 'tuning', hint => qr/HINT:  A base that is tuned needs its weights/);
fails(q(SELECT finetune_estimate('gpt', 'TABLE fact')), '0A000', $no_base, 'an estimate');
fails(qq(SELECT finetune_import('m', 'gpt', '$data')), '0A000', $no_base, 'an adapter');
is(answer(q(SELECT count(*) FROM finetune.models WHERE name = 'm')), '0', 'no model is made');
fails(q(SELECT finetune_evaluate('gpt', 'TABLE fact')), '0A000', qr/model "gpt" is behind an endpoint: its weights are not here/, 'evaluation');
fails(qq(SELECT finetune_export('gpt', '$data/out', 'gguf')), '42809', qr/model "gpt" is a base model/, 'export');
fails($_->[0], '0A000', $not_here, $_->[1], hint => qr/HINT:  It can only be asked, by complete\(\) and try_complete\(\)/)
  for [ q(SELECT count_tokens('gpt', 'x')), 'tokens' ], [ q(SELECT tokenize('gpt', 'x')), 'tokens by name' ],
  [ q(SELECT detokenize('gpt', '{1}')), 'text of tokens' ];

# --- Dumps

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
answer('CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('copy') ], 'and back');
is($node->safe_psql('copy', q(SELECT complete('gpt', 'show key')), extra_params => [ '-U', 'alice' ]), "Bearer $secret-new", 'with its keys');

# --- Our own engine, on TCP, behind TLS

my $folder = $node->basedir . '/remote';
mkdir $folder or die;
write_file("$folder/key", "$secret\n");
chmod 0600, "$folder/key" or die;
my $remote = ServeTest->new(
	folder => $folder, engine => "$ENV{TESTDIR}/build/pg_finetune_engine", args => [ '--listen', '127.0.0.1:0', '--api-key-file', "$folder/key" ]);
my ($port) = $remote->log_text =~ /, port (\d+)/;
my ($status) = $remote->post('/v1/load_model', { model => 'tiny', path => $node->basedir . '/models/tiny.gguf' });
is($status, 200, 'an engine elsewhere');
my $proxy = Endpoint->new(tls => $port, certificates => $certificates, name => 'good');
answer(create('ours', "endpoint '@{[$proxy->url('localhost', 'https')]}/v1/', remote_model 'tiny', sslrootcert 'endpoint_ca.crt'"));
my $ask = q(SELECT complete('%s', 'item 1', '{"max_tokens": 12, "n": 2, "logprobs": true, "temperature": 0.8, "seed": 5}') - 'created' - 'model' #- '{usage,prompt_tokens_details}');
fails(sprintf($ask, 'ours'), '28000', qr/model "ours": the endpoint wants an API key \(HTTP status 401\)/, 'without a key');
answer("CREATE USER MAPPING FOR CURRENT_USER SERVER ours OPTIONS (api_key '$secret-wrong')");
fails(sprintf($ask, 'ours'), '28000', qr/model "ours": the endpoint does not accept the API key/, 'with a wrong one');
answer("ALTER USER MAPPING FOR CURRENT_USER SERVER ours OPTIONS (SET api_key '$secret')");
is(answer(sprintf $ask, 'ours'), answer(sprintf $ask, 'tiny'), 'with the right one: the same answers as the model gives here');
fails(q(SELECT complete('ours', 'x', '{"response_format": {"type": "json", "schema": {"not": {}}}}')), '22023',
	qr/model "ours": the endpoint refuses the request \(HTTP status 400, unsupported\)/, 'a schema that it does not take');

# --- Secrets

is(log_count($node, qr/$canary|\Q$secret/, 0), 0, 'neither prompt nor key is in the log');
unlike(slurp_file('/proc/' . engine_pid($node) . '/cmdline'), qr/\Q$secret/, 'nor in the command line of the engine');
$node->stop;
done_testing();
