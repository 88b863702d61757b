# Who may use a model, and what keeps its server, its row and its weights in
# step: renames, drops, roles, dump and restore, replication.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node, $models) = new_echo_cluster('rights');

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub answer_as
{
	my ($user, $sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

sub fails
{
	my ($sql, $state, $pattern, $name, %option) = @_;
	my ($got, $words) = sqlstate_of($node, $sql, %option);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

answer('GRANT CREATE ON DATABASE postgres TO PUBLIC; CREATE ROLE owner LOGIN; CREATE ROLE analyst LOGIN; CREATE ROLE heir LOGIN');
store_adapter($node, 'tuned', { prefix => 'tuned ' });

# Rights to use
fails(q(SELECT complete('one', 'x')), '42501', qr/permission denied for foreign server one/,
	'a base without USAGE', user => 'analyst');
fails(q(SELECT count_tokens('one', 'x')), '42501', qr/permission denied for foreign server one/,
	'its tokeniser', user => 'analyst');
fails(q(SELECT complete('tuned', 'x')), '42501', qr/permission denied for foreign server tuned/,
	'a tuned model without USAGE', user => 'analyst');
is(answer_as('analyst', 'SELECT count(*) FROM finetune.models'), 0, 'nor does the view show any');
answer('GRANT USAGE ON FOREIGN SERVER tuned TO analyst');
is(answer_as('analyst', q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'with USAGE it is answered');
is(answer_as('analyst', 'SELECT name, base FROM finetune.models'), 'tuned|one', 'and shown');
fails(q(SELECT complete('one', 'x')), '42501', qr/permission denied/,
	'USAGE on a tuned model is none on its base', user => 'analyst');
answer('REVOKE USAGE ON FOREIGN SERVER tuned FROM analyst');
fails(q(SELECT complete('tuned', 'x')), '42501', qr/permission denied/, 'USAGE taken back',
	user => 'analyst');

# The tables are nobody's to read or write
for my $statement (
	'SELECT * FROM finetune.model', 'SELECT * FROM finetune.weights',
	'DELETE FROM finetune.weights', q(UPDATE finetune.model SET weights_digest = NULL))
{
	fails($statement, '42501', qr/permission denied for table/, $statement, user => 'analyst');
}
fails('CREATE TABLE finetune.t ()', '42501', qr/permission denied for schema/,
	'a table in the schema', user => 'analyst');
is( answer(
		q(SELECT count(*) FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
		  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_finetune'
		  WHERE pronamespace = 'finetune'::regnamespace AND prosecdef)),
	0, 'no function of the schema is SECURITY DEFINER');

# Rights to create
my $create = q(CREATE SERVER mine TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf'));
fails($create, '42501', qr/permission denied for foreign-data wrapper/,
	'a base without USAGE on the wrapper', user => 'owner');
answer('GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO owner');
answer_as('owner', $create);
is(answer_as('owner', q(SELECT complete('mine', 'x'))), 'echo: x', 'a base of an ordinary role');
fails(q(CREATE SERVER hand TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune),
	'42501', qr/cannot be created by hand.*HINT/s, 'a tuned model by hand', user => 'owner');
fails(q(ALTER SERVER mine OPTIONS (SET file '../other')), 'HV024', qr/must not contain "\.\."/,
	'another file, out of the directory', user => 'owner');
fails(q(ALTER SERVER mine OPTIONS (DROP file)), 'HV00J', qr/option "file" is required/,
	'no file', user => 'owner');

# Traps on the search path, for functions that read tables with their owner's rights
answer_as('owner', <<'SQL');
CREATE SCHEMA trap;
CREATE FUNCTION trap.eq(text, text) RETURNS boolean LANGUAGE plpgsql
	AS $$BEGIN RAISE EXCEPTION 'trapped as %', current_user; END$$;
CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.eq);
CREATE TABLE trap.model (id uuid, name text);
SQL
is( answer_as('owner', q(SET search_path = trap, pg_catalog, public; SELECT complete('mine', 'x'))),
	'echo: x', 'operators on the search path are not used');
is( answer_as('owner',
		q(SET search_path = trap, pg_catalog, public; ALTER SERVER mine RENAME TO mine2; SELECT complete('mine2', 'x'))),
	'echo: x', 'nor for a rename');

# Rename and drop
answer_as('owner', 'ALTER SERVER mine2 RENAME TO mine');
is(answer(q(SELECT string_agg(name, ',' ORDER BY name) FROM finetune.model)), 'mine,one,tuned',
	'rows follow renames');
answer(q(BEGIN; ALTER SERVER tuned RENAME TO other; ROLLBACK));
is(answer(q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'a rename rolled back');
fails('DROP SERVER one', '2BP01', qr/server tuned depends on server one/, 'a base that is needed');
answer(q(ALTER SERVER one RENAME TO first));
is(answer(q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'a base renamed under its tuned model');
answer(q(BEGIN; DROP SERVER tuned; ROLLBACK));
is(answer(q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'a drop rolled back');
answer('DROP SERVER tuned');
is(answer('SELECT count(*) FROM finetune.weights'), 0, 'weights go with their model');
answer('ALTER SERVER first RENAME TO one');
store_adapter($node, 'tuned', { prefix => 'tuned ' });
answer('DROP SERVER one CASCADE');
is(answer('SELECT string_agg(name, $$,$$) FROM finetune.model'), 'mine', 'a base with all that is tuned from it');
answer(q(CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));

# As a replica does
store_adapter($node, 'tuned', { prefix => 'tuned ' });
answer(q(SET session_replication_role = replica; ALTER SERVER tuned RENAME TO replicated));
is(answer(q(SELECT complete('replicated', 'x'))), 'tuned echo: x', 'a rename by a replica');
answer(q(SET session_replication_role = replica; DROP SERVER replicated));
is( answer(q(SELECT (SELECT count(*) FROM finetune.weights) + (SELECT count(*) FROM finetune.model WHERE name = 'replicated'))),
	0, 'a drop by a replica');

# Names
my ($long, $odd) = ('n' x 63, q(a "b" 'c' $$ ü));
(my $quoted = $odd) =~ s/"/""/g;
answer(qq(CREATE SERVER $long TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
is(answer(qq(SELECT complete('$long', 'x'))), 'echo: x', 'the longest name');
fails(qq(SELECT complete('${long}n', 'x')), '42704', qr/does not exist/, 'a longer one');
answer(qq(CREATE SERVER "$quoted" TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
is(answer(qq(SELECT complete(\$q\$$odd\$q\$, 'x'))), 'echo: x', 'an odd name');
answer(qq(DROP SERVER "$quoted"; DROP SERVER $long));

# Servers of other wrappers are no models, and do not matter
answer('CREATE FOREIGN DATA WRAPPER other; CREATE SERVER elsewhere FOREIGN DATA WRAPPER other');
fails(q(SELECT complete('elsewhere', 'x')), '42704', qr/model "elsewhere" does not exist/,
	'a server of another wrapper');
answer('ALTER SERVER elsewhere RENAME TO there; DROP SERVER there');

# Roles
fails('DROP ROLE owner', '2BP01', qr/owner of server mine/, 'a role that owns a model');
answer('REASSIGN OWNED BY owner TO heir');
is(answer(q(SELECT owner FROM finetune.models WHERE name = 'mine')), 'heir', 'REASSIGN OWNED');
answer('DROP OWNED BY heir');
is(answer(q(SELECT count(*) FROM finetune.model WHERE name = 'mine')), 0, 'DROP OWNED');

# Dump and restore
store_adapter($node, 'tuned', { prefix => 'tuned ', big => 'z' x 1500000 });
answer('GRANT USAGE ON FOREIGN SERVER tuned TO analyst');
my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ],
	'pg_restore');
is( $node->safe_psql('restored', q(SELECT complete('tuned', 'x')), extra_params => [ '-U', 'analyst' ]),
	'tuned echo: x', 'a restored model answers, and its grants are there');
my $rows = 'SELECT name, id, base_id, weights_digest FROM finetune.model ORDER BY name';
is($node->safe_psql('restored', $rows), answer($rows), 'rows are the same');
fails('DROP SERVER one', '2BP01', qr/depends on/, 'a restored base is still needed', db => 'restored');

# The extension
fails('DROP EXTENSION pg_finetune', '2BP01', qr/server .* depends on/, 'the extension while models exist');
answer('BEGIN; DROP EXTENSION pg_finetune CASCADE; ROLLBACK');
is(answer(q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'DROP EXTENSION rolled back');
answer('SET client_min_messages = warning; DROP EXTENSION pg_finetune CASCADE');
is(answer(q(SELECT count(*) FROM pg_foreign_server)), 0, 'with CASCADE its models go');
is(answer('SELECT count(*) FROM pg_event_trigger'), 0, 'and its event triggers');
answer('CREATE SCHEMA ml; CREATE EXTENSION pg_finetune SCHEMA ml');
answer(q(CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
is(answer(q(SELECT ml.complete('one', 'x'))), 'echo: x', 'in another schema');

# Without preload everything can be created, and the functions say what to set
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = ''\npg_finetune.work_directory = 'pgsql_tmp_elsewhere'");
$node->restart;
my ($rc, $out, $err) = $node->psql('postgres', q(LOAD 'pg_finetune'));
is($err, '', 'the library loads quietly');
fails(q(SELECT ml.complete('one', 'x')), '55000', qr/must be loaded via shared_preload_libraries.*HINT/s,
	'not preloaded');
$node->safe_psql('postgres', 'CREATE DATABASE plain');
$node->safe_psql('plain', 'CREATE EXTENSION pg_finetune');
is( $node->safe_psql('plain', q(CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf'); SELECT name FROM finetune.models)),
	'one', 'models can be created and seen without it');
$node->stop;

done_testing();
