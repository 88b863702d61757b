# Callers share the engine: who asks for much does not keep the others waiting, and cannot
# take all places.
use strict;
use warnings;

use Test::More;

use ServeTest;
use TinyModel;

my $true = JSON::PP::true();
my ($status, $reply);

my $engine = ServeTest->new(args => [ '--max-requests', 240 ]);
my $folder = $engine->{folder};
write_model("$folder/long.gguf", context => 200000);
($status) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/long.gguf", context_length => 150000 });
is($status, 200, 'a model');

my $endless = 149000;

sub ask
{
	my ($salt, $max_tokens) = @_;
	my $s = $engine->connect;

	$engine->send_request($s, 'POST', '/v1/completions',
		{ model => 'm', prompt => 'x', max_tokens => $max_tokens, ignore_eos => $true, cache_salt => $salt });
	return $s;
}

sub stats { return ($engine->get('/stats'))[1]; }
sub stats_become { my ($wanted) = @_; return ServeTest::wait_until(sub { $wanted->(stats()) }); }

# All places of a batch are taken by one caller, who has more waiting; then comes another one
my @endless = map { ask('a', $endless) } 1 .. 64;
ok(stats_become(sub { $_[0]{running} == 64 }), 'one caller has the whole batch');
my @waiting = map { ask('a', 4) } 1 .. 146;
ok(stats_become(sub { $_[0]{waiting} == 146 }), 'and more that wait');
($status, $reply) = $engine->read_reply(ask('a', 4));
is($status, 429, 'but not all places');
is($reply->{error}{code}, 'busy', 'it is busy');
like($reply->{error}{message}, qr/^210 requests of this caller are waiting or running, the limit is 210$/, 'with the numbers');
like($reply->{error}{hint}, qr/^Try again later/, 'and a hint');
my @single = map { ask('b', 40) } 1 .. 2;
ok(stats_become(sub { $_[0]{waiting} == 148 }), 'another caller waits');
while (my $s = shift @single)
{
	# One place for both: when the first has ended the second is next
	close shift @endless if @single;
	($status, $reply) = $engine->read_reply($s);
	is($status, 200, 'its requests are answered, with one place free');
}
cmp_ok(stats()->{waiting}, '>', 0, 'before all of those that were there before them');
close $_ for @endless;
my @status = map { ($engine->read_reply($_))[0] } @waiting;
is(scalar(grep { $_ == 200 } @status), 146, 'then these are, too');
ok(stats_become(sub { $_[0]{waiting} + $_[0]{running} + $_[0]{cache}{m}{used} == 0 }), 'nothing is left');

# All places, by several callers
my @many = ((map { ask('a', $endless) } 1 .. 209), map { ask("other $_", $endless) } 1 .. 31);
ok(stats_become(sub { $_[0]{waiting} + $_[0]{running} == 240 }), 'a full queue');
($status, $reply) = $engine->read_reply(ask('b', 4));
is($status, 429, 'has no place for anybody');
like($reply->{error}{message}, qr/^240 requests are waiting or running, the limit is 240$/, 'and says so');
like($reply->{error}{hint}, qr/^Try again later/, 'with a hint');
close $_ for @many;
ok(stats_become(sub { $_[0]{waiting} + $_[0]{running} + $_[0]{cache}{m}{used} == 0 }), 'clients that go leave it empty');
$engine->stop;

done_testing();
