# 204_response_format.pl: answers that are in a required format, whatever the model would say.

use strict;
use warnings;

use Test::More;

binmode Test::More->builder->$_, ":encoding(UTF-8)" for qw(output failure_output);

use ServeTest;
use TinyModel;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my ($status, $reply);

my $engine = ServeTest->new;
my $folder = $engine->{folder};
write_model("$folder/tiny.gguf", context => 4000);
write_adapter("$folder/lora", seed => 3);
$engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
$engine->post('/v1/load_lora_adapter', { lora_name => 'lora', lora_path => "$folder/lora", base_model_name => 'm' });

sub schema { my ($schema) = @_; return { type => 'json_schema', json_schema => { name => 'x', strict => $true, schema => $schema } } }
sub text { my ($reply) = @_; return $reply->{choices}[0]{text} }
sub finish { my ($reply) = @_; return $reply->{choices}[0]{finish_reason} }

# Numbers that a JSON text says are numbers, and so on: what a value is
sub kind
{
	my ($value) = @_;
	return 'null'    if !defined $value;
	return 'boolean' if ref $value eq 'JSON::PP::Boolean';
	return lc ref $value if ref $value;
	return 'string'  if JSON::PP->new->allow_nonref->encode($value) =~ /^"/;
	return $value =~ /^-?\d+\z/ ? 'integer' : 'number';
}
my $decoder = JSON::PP->new->allow_nonref->allow_bignum;

# --- what comes out ---------------------------------------------------------------------------

my $person = {
	type       => 'object',
	properties => {
		flag => { type => 'boolean' },
		kind => { enum => [ 'one', 'two', 'three' ] },
		list => { type => 'array', items => { type => 'boolean' }, minItems => 1, maxItems => 4 },
		n    => { type => 'integer' },
		sub  => { anyOf => [ { type => 'null' }, { '$ref' => '#' } ] }
	},
	required             => [qw(flag kind list n)],
	additionalProperties => $false
};

sub is_person
{
	my ($value) = @_;
	return 0 if ref $value ne 'HASH' || grep { !$person->{properties}{$_} } keys %$value;
	return 0 if kind($value->{flag}) ne 'boolean' || kind($value->{n}) !~ /integer|math/ || ref $value->{list} ne 'ARRAY';
	return 0 if $value->{kind} !~ /\A(?:one|two|three)\z/ || @{ $value->{list} } < 1 || @{ $value->{list} } > 4;
	return 0 if grep { kind($_) ne 'boolean' } @{ $value->{list} };
	return !exists $value->{sub} || !defined $value->{sub} || is_person($value->{sub});
}

my @requests = map {
	[   '/v1/completions',
		{   model => $_ % 2 ? 'm' : 'lora', prompt => "person $_", max_tokens => 3000,
			temperature => $_ % 5 ? 1 : 0, seed => $_, response_format => schema($person) }
	]
} 1 .. 20;
my @together = $engine->post_all(@requests);
is(scalar(grep { $_->[0] == 200 && finish($_->[1]) eq 'stop' } @together), 20, 'answers end by themselves')
	or diag(explain([ map { $_->[0] == 200 ? finish($_->[1]) : $_->[1] } @together ]));
is(scalar(grep { is_person(eval { $decoder->decode(text($_->[1])) }) } @together), 20, 'and fit the schema')
	or diag(explain([ map { text($_->[1]) } @together ]));
my @alone = map { [ $engine->post(@$_) ] } @requests;
is_deeply([ map { text($_->[1]) } @alone ], [ map { text($_->[1]) } @together ], 'they are the same one by one');
my @again = $engine->post_all(map { [ $_->[0], { %{ $_->[1] }, cache_salt => 'other' } ] } reverse @requests);
is_deeply([ map { text($_->[1]) } reverse @again ], [ map { text($_->[1]) } @together ], 'and in another order');

# each kind of value
my %ask = (model => 'm', prompt => 'x', max_tokens => 2000, temperature => 1);
for my $case (
	[ boolean => { type => 'boolean' } ], [ null => { type => 'null' } ], [ string => { enum => [ 'a', 'ab' ] } ],
	[ integer => { type => 'integer' } ], [ integer => { const => 7 } ],
	[ array => { type => 'array', items => { type => 'null' }, maxItems => 3 } ],
	[ hash => { type => 'object', properties => { a => { type => 'null' } }, additionalProperties => $false } ])
{
	my ($kind, $schema) = @$case;
	for my $seed (1 .. 5)
	{
		($status, $reply) = $engine->post('/v1/completions', { %ask, seed => $seed, response_format => schema($schema) });
		is(kind($kind eq 'integer' ? JSON::PP->new->allow_nonref->decode(text($reply)) : $decoder->decode(text($reply))), $kind, "$kind, seed $seed");
	}
}

# any object: it ends by itself, or in time, or is cut off where there is no time for the shortest
for my $seed (1 .. 10)
{
	($status, $reply) = $engine->post('/v1/completions',
		{ %ask, seed => $seed, max_tokens => 2 + 10 * $seed, response_format => { type => 'json_object' } });
	is(ref eval { $decoder->decode(text($reply)) }, 'HASH', "json_object, seed $seed: an object, and whole");
	is(finish($reply), 'stop', "json_object, seed $seed: that ends");
}
($status, $reply) = $engine->post('/v1/completions', { %ask, max_tokens => 1, response_format => { type => 'json_object' } });
is(finish($reply), 'length', 'json_object: one token does not do');

# an end that is a choice: 1, 12 or 123 may each go on or not
my %ends;
for my $seed (1 .. 40)
{
	($status, $reply) = $engine->post('/v1/completions', { %ask, seed => $seed, response_format => schema({ enum => [ 1, 12, 123 ] }) });
	$ends{ text($reply) }++;
	is(finish($reply), 'stop', 'a number ends') if !$ends{seen}++;
}
delete $ends{seen};
is(scalar(grep { !/\A(?:1|12|123)\z/ } keys %ends), 0, 'only values of the list');

# with other options
($status, $reply) = $engine->post('/v1/chat/completions',
	{ model => 'm', messages => [ { role => 'user', content => 'x' } ], response_format => schema({ const => [ 1, { a => 'b' } ] }) });
is($reply->{choices}[0]{message}{content}, '[1,{"a":"b"}]', 'a chat is answered with a constant');
is($reply->{choices}[0]{finish_reason}, 'stop', 'and ends when it is complete');
($status, $reply) = $engine->post('/v1/completions',
	{ %ask, repetition_penalty => 2, frequency_penalty => 2, presence_penalty => 2, top_k => 1, response_format => schema({ const => 'aaaaaaaaaa' }) });
is(text($reply), '"aaaaaaaaaa"', 'penalties do not get through');
($status, $reply) = $engine->post('/v1/completions', { %ask, max_tokens => 3, response_format => schema({ const => 'aaaaaaaaaa' }) });
is(finish($reply), 'length', 'max_tokens ends an answer before it is complete');
($status, $reply) = $engine->post('/v1/completions', { %ask, stop => 'aaa', response_format => schema({ const => 'aaaaaaaaaa' }) });
is(text($reply), '"', 'so does a stop string');
($status, my $plain) = $engine->post('/v1/completions', { %ask, max_tokens => 30, seed => 1 });
($status, $reply) = $engine->post('/v1/completions', { %ask, max_tokens => 30, seed => 1, response_format => { type => 'text' } });
is(text($reply), text($plain), 'text is what there is without a format');

# --- what is refused --------------------------------------------------------------------------

my $deep = { type => 'null' };
$deep = { anyOf => [$deep] } for 1 .. 100;
for my $case (
	[ 'a keyword',     schema({ type => 'string', pattern => 'a' }), 'unsupported', qr/schema at "#": "pattern" is not supported/ ],
	[ 'a place',       schema({ items => { oneOf => [] } }), 'unsupported', qr/schema at "#\/items": "oneOf" is not supported/ ],
	[ 'a circle',      schema({ '$ref' => '#' }), 'invalid', qr/no value of finite size fits the schema/ ],
	[ 'deep nesting',  schema($deep), 'invalid', qr/nested more than 64 deep/ ],
	[ 'a huge enum',   schema({ enum => [ 1 .. 10001 ] }), 'invalid', qr/"enum" has 10001 values, the limit is 10000/ ],
	[ 'large counts',  schema({ maxItems => 10000, items => { maxItems => 10000, items => { maxItems => 10000, items => { maxItems => 10000, items => { maxItems => 10000, items => { maxItems => 10000, items => { maxItems => 10000, items => { type => 'null' } } } } } } } }), 'invalid', qr/schema is too large/ ],
	[ 'another type',  { type => 'grammar' }, 'unsupported', qr/must be text, json_object or json_schema/ ],
	[ 'no schema',     { type => 'json_schema', json_schema => {} }, 'invalid', qr/"json_schema" has no "schema"/ ],
	[ 'no object',     'json', 'invalid', qr/"response_format" must be an object/ ])
{
	my ($name, $format, $code, $message) = @$case;
	($status, $reply) = $engine->post('/v1/completions', { %ask, response_format => $format });
	is($status, 400, "$name: status");
	is($reply->{error}{code}, $code, "$name: code");
	like($reply->{error}{message}, $message, "$name: message");
}
($status, $reply) = $engine->post('/v1/completions', { %ask, ignore_eos => $true, response_format => { type => 'json_object' } });
like($reply->{error}{message}, qr/"ignore_eos" and "response_format" exclude each other/, 'an answer that ends cannot be told not to');

# brackets that double the ways: an error, while others go on
my $doubling = { anyOf => [ { type => 'array', items => { '$ref' => '#' }, minItems => 1 }, { type => 'array', items => { '$ref' => '#' }, maxItems => 1 },
		{ type => 'array', items => { '$ref' => '#' }, maxItems => 2 } ] };
my @mixed = $engine->post_all(
	[ '/v1/completions', { %ask, seed => 3, response_format => schema($doubling) } ],
	[ '/v1/completions', { %ask, seed => 1, max_tokens => 30 } ]);
ok($mixed[0][0] == 200 || $mixed[0][1]{error}{message} =~ /ways open at once|too intricate/, 'a schema that is too intricate is answered or refused');
is(text($mixed[1][1]), text($plain), 'and hurts nobody else');

(undef, $reply) = $engine->get('/stats');
is($reply->{cache}{m}{used}, 0, 'no block is in use at the end');
is($engine->stop, 0, 'the engine ends well');

done_testing();
