# 207_openai.pl: OpenAI's own client, where OPENAI_PYTHON names an interpreter that has it.

use strict;
use warnings;

use File::Temp ();
use Test::More;

use TinyModel;

my $python = $ENV{OPENAI_PYTHON} // 'python3';
my $folder = File::Temp->newdir;
write_model("$folder/tiny.gguf", context => 3000);
my $output = `'$python' test/golden/check_openai.py '@{[ $ENV{ENGINE} // 'build/pg_finetune_engine' ]}' '$folder/tiny.gguf' 2>&1`;
plan skip_all => "OPENAI_PYTHON names no interpreter with OpenAI's client: " . ($output =~ s/\s+\z//r)
	if $output =~ /\Askip:/ || $? >> 8 == 127;
is($?, 0, 'the client is answered') or diag($output);
like($output, qr/^ok: openai/m, 'all of it');

done_testing();
