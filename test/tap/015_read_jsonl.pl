# finetune.read_jsonl(): who may read which file, lines good and bad, large
# files, other encodings.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('read_jsonl');
my $dir  = $node->basedir . '/files';

$node->init(extra => [ '--encoding', 'UTF8' ]);
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'pg_finetune'
pg_finetune.serve = off
CONF
$node->start;
mkdir $dir or die "$dir: $!";
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION pg_finetune;
CREATE ROLE reader LOGIN IN ROLE pg_read_server_files;
CREATE ROLE granted LOGIN;
CREATE ROLE stranger LOGIN;
GRANT EXECUTE ON FUNCTION finetune.read_jsonl(text) TO granted;
SQL

sub fails
{
	my ($what, $code, $message, $sql, %option) = @_;
	my ($state, $error) = sqlstate_of($node, $sql, %option);

	is($state, $code, "$what: $code");
	like($error, $message, "$what: message");
	unlike($error, qr/CANARY/, "$what: nothing of the file");
}

sub lines_of
{
	my ($file, $db) = @_;
	return $node->safe_psql($db // 'postgres', "SELECT * FROM finetune.read_jsonl('$dir/$file')");
}

# --- Lines

write_file("$dir/good.jsonl",
	"\xef\xbb\xbf{\"a\": 1}\n\n  \t\r\n{\"a\": \"\xc3\xa9\\u00e9\"}\r\n[1, 2]\n\"text\"\nnull\n{\"a\":\t2}");
is(lines_of('good.jsonl'), qq({"a": 1}\n{"a": "\xc3\xa9\xc3\xa9"}\n[1, 2]\n"text"\nnull\n{"a": 2}), 'lines are rows, in their order');
is($node->safe_psql('postgres', "SELECT count(*) FROM finetune.read_jsonl('$dir/good.jsonl') j WHERE j IS NULL"), 0, 'null is JSON');
is($node->safe_psql('postgres', "SELECT finetune.read_jsonl('$dir/good.jsonl')->>'a' LIMIT 1"), 1, 'in a select list');
is($node->safe_psql('postgres', "SELECT count(*) FROM finetune.read_jsonl('$dir/good.jsonl') x, finetune.read_jsonl('$dir/good.jsonl') y"),
	36, 'joined to itself');
is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.read_jsonl(NULL)'), 0, 'NULL is no file');
write_file("$dir/empty.jsonl", '');
is(lines_of('empty.jsonl'), '', 'an empty file');
write_file("$dir/blank.jsonl", "\n\n \n");
is(lines_of('blank.jsonl'), '', 'a file of blank lines');

for my $case (
	[ 'no JSON'       => '22P02', qr/line 3 of file ".*" is not valid JSON/,  qq({"a": 1}\n\n{"CANARY": CANARY}\n) ],
	[ 'unfinished'    => '22P02', qr/line 1 of file ".*" is not valid JSON/,  '{"CANARY": "CANARY' ],
	[ 'two values'    => '22P02', qr/line 1 of file ".*" is not valid JSON/,  qq({"a": 1} {"CANARY": 2}\n) ],
	[ 'no UTF-8'      => '22021', qr/line 2 of file ".*" is not valid UTF-8/, qq({"a": 1}\n{"CANARY": "\xff"}\n) ],
	[ 'zero byte'     => '22021', qr/line 1 of file ".*" is not valid UTF-8/, qq({"a": 1}\0CANARY\n) ],
	[ 'zero escaped'  => '22P05', qr/line 1 of file ".*" has a character that jsonb cannot hold/, qq({"CANARY": "\\u0000"}\n) ],
	[ 'half a pair'   => '22P02', qr/line 1 of file ".*" is not valid JSON/,  qq({"CANARY": "\\ud800"}\n) ],
	[ 'huge number'   => '22003', qr/line 1 of file ".*" cannot be read as jsonb/, qq({"CANARY": 1e1000000}\n) ],
	[ 'deep'          => '54001', qr/line 1 of file ".*" cannot be read as jsonb/, '[' x 1000000 ])
{
	my ($what, $code, $message, $text) = @$case;

	write_file("$dir/bad.jsonl", $text);
	fails($what, $code, $message, "SELECT count(*) FROM finetune.read_jsonl('$dir/bad.jsonl')");
}

# More than a buffer, and more than a line of a usual buffer
write_file("$dir/wide.jsonl", join '', map { '{"n": ' . $_ . ', "text": "' . ('x' x (1 << $_)) . qq("}\n) } 1 .. 22);
is( $node->safe_psql('postgres',
		"SELECT count(*), sum((j->>'n')::int), bool_and(length(j->>'text') = 2 ^ (j->>'n')::int) FROM finetune.read_jsonl('$dir/wide.jsonl') j"),
	'22|253|t', 'long lines');
write_file("$dir/many.jsonl", join '', map { qq({"n": $_}\n) } 1 .. 200000);
is( $node->safe_psql('postgres',
		"SET work_mem = '64kB'; SELECT count(*), sum((j->>'n')::int) FROM finetune.read_jsonl('$dir/many.jsonl') j"),
	'200000|20000100000', 'many lines');

# A file is never in memory as a whole, nor are its rows
{
	open(my $file, '>', "$dir/large.jsonl") or die;
	print $file '{"text": "', 'x' x 1000, qq("}\n) for 1 .. 120000;
	close $file or die;
}
is( $node->safe_psql('postgres', <<"SQL"), "120000\nt", 'a file of 120 MB takes less than half of that in memory');
SET work_mem = '1MB';
SELECT count(*) FROM finetune.read_jsonl('$dir/large.jsonl');
SELECT (regexp_match(pg_read_file('/proc/self/status'), 'VmHWM:\\s+(\\d+) kB'))[1]::int < 60000;
SQL
unlink "$dir/large.jsonl";
fails('a cursor that stops is no error, one that errs', '22012', qr/division by zero/,
	"BEGIN; DECLARE c CURSOR FOR SELECT 1 / (199999 - (j->>'n')::int) FROM finetune.read_jsonl('$dir/many.jsonl') j; FETCH 2 FROM c; MOVE ALL FROM c; COMMIT");
unlike(slurp_file($node->logfile), qr/not closed at end-of-transaction/, 'files are closed');

# A line beyond what a string may hold: a hole in the file is read as zeros
SKIP:
{
	my ($free) = slurp_file('/proc/meminfo') =~ /^MemAvailable:\s+(\d+) kB/m;

	skip 'a line of 1 GB needs 3 GB of free memory', 3 if $free < 3 * 1024 * 1024;
	open(my $huge, '>', "$dir/huge.jsonl") or die;
	truncate($huge, 1 << 30) or die;
	close $huge;
	fails('a line of 1 GB', '54000', qr/line 1 of file ".*" is longer than \d+ bytes/,
		"SELECT count(*) FROM finetune.read_jsonl('$dir/huge.jsonl')");
	unlink "$dir/huge.jsonl";
}

# --- Files and rights

fails('missing', '58P01', qr/could not stat file ".*none\.jsonl"/, "SELECT * FROM finetune.read_jsonl('$dir/none.jsonl')");
fails('directory', '42809', qr/is not a regular file/, "SELECT * FROM finetune.read_jsonl('$dir')");
fails('what cannot be read', '58030', qr/could not read file/, "SELECT * FROM finetune.read_jsonl('/proc/self/mem')");
system('mkfifo', "$dir/pipe") == 0 or die;
fails('pipe', '42809', qr/is not a regular file/, "SELECT * FROM finetune.read_jsonl('$dir/pipe')");
chmod 0, "$dir/many.jsonl";
fails('unreadable', '42501', qr/could not open file/, "SELECT * FROM finetune.read_jsonl('$dir/many.jsonl')");

write_file($node->data_dir . '/inside.jsonl', "1\n2\n");
is($node->safe_psql('postgres', "SELECT count(*) FROM finetune.read_jsonl('$dir/good.jsonl')", extra_params => [ '-U', 'reader' ]),
	6, 'a member of pg_read_server_files reads any file');
is($node->safe_psql('postgres', "SELECT count(*) FROM finetune.read_jsonl('inside.jsonl')", extra_params => [ '-U', $_ ]),
	2, "a path is relative to the data directory: $_") for qw(reader granted);
is( $node->safe_psql('postgres', "SELECT count(*) FROM finetune.read_jsonl('" . $node->data_dir . "/inside.jsonl')",
		extra_params => [ '-U', 'granted' ]),
	2, 'who may only call it reads the data directory');
fails('a stranger', '42501', qr/permission denied for function read_jsonl/,
	"SELECT * FROM finetune.read_jsonl('inside.jsonl')", user => 'stranger');
fails("outside, by $_->[0]", '42501', qr/permission denied to read file/,
	"SELECT * FROM finetune.read_jsonl('$_->[1]')", user => 'granted')
  for [ absolute => "$dir/good.jsonl" ], [ relative => '../files/good.jsonl' ],
  [ 'a way back' => $node->data_dir . '/../files/good.jsonl' ], [ 'a path below and back' => 'base/../../files/good.jsonl' ];

# --- Other encodings

$node->safe_psql('postgres', "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
$node->safe_psql('postgres', "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'");
$node->safe_psql($_, 'CREATE EXTENSION pg_finetune') for qw(latin bytes);
write_file("$dir/accent.jsonl", qq("\xc3\xa9"\n));
is($node->safe_psql('latin', "SELECT encode(convert_to(j #>> '{}', 'LATIN1'), 'hex') FROM finetune.read_jsonl('$dir/accent.jsonl') j"),
	'e9', 'into LATIN1');
is($node->safe_psql('bytes', "SELECT octet_length(j #>> '{}') FROM finetune.read_jsonl('$dir/accent.jsonl') j"), 2, 'into SQL_ASCII');
write_file("$dir/euro.jsonl", qq("x"\n"CANARY\xe2\x82\xac"\n));
fails('a character that the database lacks', '22P05', qr/line 2 of file ".*" has a character that jsonb cannot hold/,
	"SELECT * FROM finetune.read_jsonl('$dir/euro.jsonl')", db => 'latin');
write_file("$dir/bad.jsonl", qq("CANARY\xe9"\n));
fails('no UTF-8, into SQL_ASCII', '22021', qr/line 1 of file ".*" is not valid UTF-8/,
	"SELECT * FROM finetune.read_jsonl('$dir/bad.jsonl')", db => 'bytes');

$node->stop;
unlike(slurp_file($node->logfile), qr/^(?!.*STATEMENT).*CANARY/m, 'nothing of a file in the log');

done_testing();
