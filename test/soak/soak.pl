# soak.pl: random faults over a stream of short jobs and completions.
#
#   make soak [FAULTS=200] [SEED=…] [CRASHES=1]
#
# A private cluster trains tiny models in two databases, for several owners, and
# is asked all the time, while something is killed, cancelled, dropped or
# changed every moment.  Which faults, in which order, at which distance, is
# drawn from the seed, and so are the jobs; whom a fault hits depends on who is
# there.  With CRASHES=1 there are also faults that make the postmaster restart
# everything, or be restarted.
#
# Every job must end once, as it was asked to, with the weights and metrics of
# an undisturbed one of the same options; every answer must be the one that its
# model gives; and nothing may be left: no engine, no file, no word in the log.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use lib dirname(__FILE__);
use FinetuneJob;
use PostgreSQL::Test::Utils;
use SoakProcesses;
use SoakRemains;
use SoakSession;
use Test::More;
use Time::HiRes qw(time sleep);

my $wanted  = $ENV{FAULTS} || 200;
my $seed    = $ENV{SEED}   || int(time * 1000) % 1_000_000_000;
my $crashes = $ENV{CRASHES} ? 1 : 0;
die "FAULTS and SEED are numbers of at most nine digits\n" if grep { !/^\d{1,9}$/ } $wanted, $seed;

my @owners    = qw(alice bob carol);
my @databases = qw(postgres second);
my $askers    = 4;
my $queue_min = 3;
my $queue_max = 6;
my $keep      = 8;    # trained models in a database

# What is trained: options and query.  The same recipe gives the same weights.
my $slow    = q(SELECT prompt, completion, pg_sleep(0.01) FROM fact ORDER BY id);
my $quick   = q(SELECT prompt, completion FROM fact ORDER BY id);
my @recipes = (
	{ query => $quick, options => { max_steps => 40,  seed => 1 } },
	{ query => $slow,  options => { max_steps => 80,  seed => 2, batch_size => 128 } },
	{ query => $quick, options => { max_steps => 200, seed => 3, batch_size => 128 } },
	{ query => $quick, options => { max_steps => 250, seed => 4, batch_size => 256 } },
	{ query => $quick, options => { max_steps => 350, seed => 5, batch_size => 256, lora_r => 4 } },
	{ query => $slow,  options => { max_steps => 150, seed => 6, batch_size => 64, lr_scheduler => 'linear' } },
);
$_->{options}{learning_rate} = 0.001 for @recipes;
my @prompts = map { "item $_" } 4, 7, 23;
my %max_tokens = (4 => 8, 7 => 40, 23 => 16);

# ---- Chance ----

# Numbers from a seed, a stream for each purpose, so that one does not shift the others.
sub new_dice { return { state => ($_[0] * 2654435761 + 12345) % 2**31 }; }

sub roll
{
	my ($dice, $sides) = @_;

	$dice->{state} = ($dice->{state} * 1103515245 + 12345) % 2**31;
	return int($dice->{state} / 2**31 * $sides);
}
my ($fault_dice, $job_dice, $ask_dice) = map { new_dice($seed + $_) } 0 .. 2;
roll($_, 2) for ($fault_dice, $job_dice, $ask_dice) x 3;

# ---- State ----

my ($node, $program, $data, $postmaster, $log_start);
my %control;      # database => session of a superuser
my @asking;       # sessions that ask
my %job;          # id => what we know of a job
my @order;        # ids in order of creation
my @later;        # [time, what is to be done then]
my %expected;     # "recipe|prompt" => the answer
my (%wrong, %count, %kind_count, %slowest);
my @serve_faults; # times of faults of the serving engine that no answer followed yet
my (%suspect, %doubled);

sub say_it { note($_[0]); return; }

# Something is not as it must be.
sub wrong
{
	my ($what, $how) = @_;

	push @{ $wrong{$what} }, $how;
	say_it(sprintf('%.1f s, after fault %d: %s: %s', time - $^T, $count{faults} // 0, $what, $how))
	  if @{ $wrong{$what} } <= 10;
	return;
}

# SQL of a superuser, in a session that is made anew when the server was restarted.
sub sql
{
	my ($db, $sql) = @_;

	for (1 .. 600)
	{
		my $session = $control{$db};
		my $answer  = $session->query($sql);
		if (!$session->{dead})
		{
			# CREATE asks the serving engine, which may just have been killed
			if ($sql =~ /'CREATE'/ && $answer =~ /ERROR:  57P03:/)
			{
				$count{refused}++;
				next;
			}
			wrong('unexpected errors', "$sql: $1") if $answer =~ /(?:ERROR|FATAL|PANIC):  (\w+: .*)/;
			return $answer;
		}
		die "session of $db is gone: $answer" if !$crashes;
		sleep 0.1;
		$session->reconnect;
	}
	die "no server\n";
}

sub as_user
{
	my ($job, $sql) = @_;
	return sql($job->{db}, "SET ROLE $job->{owner}; $sql; RESET ROLE;");
}

sub session
{
	my ($db, $name) = @_;
	return SoakSession->new(host => $node->host, port => $node->port, db => $db, name => $name);
}

# ---- Jobs ----

sub create_sql
{
	my ($name, $recipe, $priority) = @_;
	my $options = JSON::PP->new->canonical->encode({ %{ $recipes[$recipe]{options} }, priority => $priority });

	return "SELECT finetune('CREATE', '$name', 'tiny', \$q\$$recipes[$recipe]{query}\$q\$, NULL, '$options')";
}

sub create_job
{
	my (%with) = @_;
	my $recipe = $with{recipe} // roll($job_dice, scalar @recipes);
	my $new    = {
		db       => $with{db} // $databases[ roll($job_dice, 2) ],
		owner    => $owners[ roll($job_dice, scalar @owners) ],
		recipe   => $recipe,
		name     => $with{name} // 'm_' . ++$count{created},
		wanted   => 'SUCCESS',
		hits     => [],
		pauses   => 0,
		priority => roll($job_dice, 3),
	};
	my $id = as_user($new, create_sql($new->{name}, $recipe, $new->{priority}));
	die "no job: $id\n" if $id !~ s/^ft_([0-9a-f-]{36})$/$1/;
	$job{$id} = { %$new, id => $id };
	push @order, $id;
	return $id;
}

sub unfinished { return grep { !$job{$_}{ended} } @order; }

# All that happened to a job, as a text.
sub story
{
	my ($this) = @_;
	return sql($this->{db}, "SELECT string_agg(type || ' ' || message, '; ' ORDER BY number) FROM finetune.event"
		  . " WHERE job_id = '$this->{id}';");
}

# Look at the jobs of a database; what has ended is judged.
sub look_at_jobs
{
	my ($db) = @_;
	my @ids = grep { $job{$_}{db} eq $db } unfinished();

	return if !@ids;
	my $list = join ',', map { "'$_'" } @ids;
	my %seen;
	for my $line (split /\n/,
		sql($db, "SELECT id, phase, attempt, fruitless FROM finetune.job WHERE id IN ($list);"))
	{
		my ($id, $phase, $attempt, $fruitless) = split /\|/, $line;
		next if !exists $job{$id};
		$seen{$id} = 1;
		@{ $job{$id} }{qw(phase attempt fruitless)} = ($phase, $attempt, $fruitless);
		judge($job{$id}) if $phase =~ /^(completed|failed|cancelled)$/;
	}
	for my $id (grep { !$seen{$_} } @ids)
	{
		wrong('lost or doubled jobs', "job $id is gone");
		$job{$id}{ended} = 'gone';
	}
	return;
}

my %status = (completed => 'SUCCESS', failed => 'ERROR', cancelled => 'CANCELLED');

# Has a job what an undisturbed one has?  Sums depend on the number of threads,
# so weights and losses are compared where that was one and the same throughout.
sub compare
{
	my ($this) = @_;
	my ($threads, $steps, $metrics, $digest) = split /\|/, sql($this->{db}, <<"SQL" =~ s/\s+/ /gr);
SELECT (SELECT string_agg(DISTINCT data ->> 'threads', ' and ') FROM finetune.event
		WHERE job_id = '$this->{id}' AND type = 'running'),
	count(*) || ' from ' || min(step) || ' to ' || max(step),
	md5(string_agg(row(step, training_loss, validation_loss, validation_token_accuracy, learning_rate, grad_norm,
		tokens)::text, ',' ORDER BY step)),
	(SELECT weights_digest FROM finetune.model WHERE name = '$this->{name}')
FROM finetune.metric WHERE job_id = '$this->{id}';
SQL
	my $recipe = $recipes[ $this->{recipe} ];
	my %is     = (metrics => $metrics, $this->{dropped} ? () : (weights => $digest));

	$recipe->{steps} //= $steps;
	wrong('other metrics', "job $this->{id} has steps $steps, not $recipe->{steps}") if $steps ne $recipe->{steps};
	return if $threads !~ /^\d+$/;
	$count{compared}++;
	for my $what (sort keys %is)
	{
		my $wanted = $recipe->{$threads}{$what} //= $is{$what};
		wrong("other $what", "job $this->{id}, recipe $this->{recipe}, $threads threads: $is{$what}, not $wanted")
		  if $is{$what} ne $wanted;
	}
	return;
}

# A job has ended: as it was to?
sub judge
{
	my ($this) = @_;
	my ($id, $db) = @$this{qw(id db)};

	$this->{ended} = $status{ $this->{phase} };
	if ($this->{ended} ne $this->{wanted})
	{
		wrong('lost or doubled jobs',
			"job $id ($this->{name}, recipe $this->{recipe}) ended as $this->{ended}, not $this->{wanted}: " . story($this));
	}
	elsif ($this->{ended} eq 'SUCCESS')
	{
		compare($this);
	}
	my $hits = @{ $this->{hits} } + $this->{pauses};
	wrong('attempts', "job $id had $this->{attempt} attempts after $hits faults") if $this->{attempt} > 1 + $hits;
	measure($this);
	return;
}

# From each fault that hit it to the next attempt's training, or to its end.
sub measure
{
	my ($this) = @_;
	my @events = map { [ split /\|/ ] } split /\n/, sql($this->{db},
		"SELECT type, extract(epoch FROM at) FROM finetune.event WHERE job_id = '$this->{id}' ORDER BY number;");
	my @ends = grep { $_->[0] =~ /^(completed|failed|cancelled)$/ } @events;

	wrong('lost or doubled jobs', "job $this->{id} ended " . @ends . ' times: ' . join ' ', map { $_->[0] } @events)
	  if @ends != 1;
	for my $hit (@{ $this->{hits} })
	{
		my $again = 0;
		next if !defined $hit->{at};
		for my $event (grep { $_->[1] > $hit->{at} } @events)
		{
			my ($type, $at) = @$event;
			$again = 1 if $type eq 'started';
			last if $type eq 'paused';    # the user's time, not ours
			next if !($again && $type eq 'running') && $type !~ /^(completed|failed|cancelled)$/;
			# where another one came in between, that is measured
			last if grep { defined $_->{at} && $_->{at} > $hit->{at} && $_->{at} < $at } @{ $this->{hits} };
			my $seconds = $at - $hit->{at};
			$slowest{ $hit->{kind} } = { seconds => $seconds, id => $this->{id} }
			  if $seconds > ($slowest{ $hit->{kind} }{seconds} // 0);
			last;
		}
	}
	return;
}

# Keep the queue filled, and the databases from filling up.
sub keep_busy
{
	my @open = grep { ($job{$_}{phase} // '') ne 'paused' } unfinished();

	if (@open < $queue_min)
	{
		my $goal = $queue_min + roll($job_dice, $queue_max - $queue_min + 1);
		create_job() for @open + 1 .. $goal;
	}
	for my $db (@databases)
	{
		my @ready = ready($db);
		while (@ready > $keep)
		{
			my $old = shift @ready;
			$old->{dropped} = 1;
			sql($db, "DROP SERVER $old->{name};");
		}
	}
	return;
}

# Trained models that can be asked.
sub ready
{
	my ($db) = @_;
	return grep { $_->{db} eq $db && ($_->{ended} // '') eq 'SUCCESS' && !$_->{dropped} } map { $job{$_} } @order;
}

# ---- Questions ----

sub question
{
	my ($name, $prompt) = @_;
	my ($item) = $prompt =~ /(\d+)/;

	return "SELECT 'answer ' || (complete('$name', '$prompt', '{\"max_tokens\": $max_tokens{$item}}') -> 'choices')::text;";
}

sub ask_something
{
	my ($session) = @_;
	my @models = (undef, ready($session->{db}));
	my $model  = $models[ roll($ask_dice, scalar @models) ];
	my $prompt = $prompts[ roll($ask_dice, scalar @prompts) ];

	$session->{question} = { model => $model, key => ($model ? $model->{recipe} : 'tiny') . "|$prompt" };
	$session->ask(question($model ? $model->{name} : 'tiny', $prompt));
	return;
}

sub hear_answer
{
	my ($session, $answer) = @_;
	my $question = $session->{question};

	if ($answer =~ /^answer /)
	{
		$count{completions}++;
		$expected{ $question->{key} } //= $answer;
		wrong('other answers', "to $question->{key}: $answer, not $expected{ $question->{key} }")
		  if $answer ne $expected{ $question->{key} };
		for my $at (grep { $_ < $session->{asked} } splice @serve_faults)
		{
			$slowest{answer}{seconds} = time - $at if time - $at > ($slowest{answer}{seconds} // 0);
		}
		return;
	}
	my ($state) = $answer =~ /(?:ERROR|FATAL):  (\w{5}):/;
	$count{refused}++;
	return if defined $state && $state =~ /^(57P0.|08...|53...)$/;
	return if defined $state && $state eq '42704' && $question->{model} && $question->{model}{dropped};
	return if $crashes && $session->{dead};
	return if $answer =~ /^no connection to the server/;    # ended between two questions
	wrong('unexpected errors', "$session->{name} asked $question->{key}: $answer");
	return;
}

sub attend_askers
{
	for my $session (@asking)
	{
		if ($session->{question})
		{
			my $answer = $session->take;
			if (!defined $answer)
			{
				next if time - $session->{asked} < 60;
				wrong('lost answers', "$session->{name} has waited for 60 s");
				$session->{dead} = 1;
			}
			else { hear_answer($session, $answer); }
			$session->{question} = undef;
			$session->{next} = time + 0.05 + roll($ask_dice, 200) / 1000;
			$session->reconnect if $session->{dead};
		}
		elsif (time >= $session->{next}) { ask_something($session); }
	}
	return;
}

# ---- Faults ----

# Those that an engine trains, and may lose another attempt.
sub in_training
{
	my $engines = engines($program, $data);
	my @found;

	look_at_jobs($_) for @databases;
	for my $pid (keys %$engines)
	{
		my $this = $job{ $engines->{$pid}{job} // '' };
		push @found, { %$this, engine => $pid }
		  if $this && !$this->{ended} && !$this->{stopped} && $this->{phase} ne 'paused' && $this->{fruitless} <= 2;
	}
	my %place = map { $order[$_] => $_ } 0 .. $#order;
	return sort { $place{ $a->{id} } <=> $place{ $b->{id} } } @found;
}

sub hit
{
	my ($id, $kind, $at) = @_;
	push @{ $job{$id}{hits} }, { kind => $kind, at => $at };
	return;
}

sub pick { my ($number, @from) = @_; return @from ? $from[ $number % @from ] : undef; }

sub signal_engine
{
	my ($signal) = @_;
	return sub {
		my ($number, $kind) = @_;
		my $this = pick($number, in_training()) // return 0;

		hit($this->{id}, $kind, time);
		kill $signal, $this->{engine};
		return 1;
	};
}

sub stop_engine
{
	my ($number, $kind) = @_;
	my $this = pick($number, in_training()) // return 0;

	kill 'STOP', $this->{engine};
	$job{ $this->{id} }{stopped} = 1;
	push @later, [
		time + 0.2 + ($number % 800) / 1000,
		sub {
			hit($this->{id}, $kind, time);
			kill 'KILL', $this->{engine};
			$job{ $this->{id} }{stopped} = 0;
		} ];
	return 1;
}

sub signal_server_engine
{
	my ($signal) = @_;
	return sub {
		my $engines = engines($program, $data);
		my ($pid) = grep { $engines->{$_}{kind} eq 'serve' } keys %$engines;

		return 0 if !$pid || @serve_faults;
		push @serve_faults, time;
		return kill $signal, $pid;
	};
}

# Workers as [pid, job], in the order of their jobs.
sub workers
{
	my @found;
	my %place = map { $order[$_] => $_ } 0 .. $#order;

	for my $db (@databases)
	{
		push @found, map { [ split /\|/ ] } split /\n/,
		  sql($db, 'SELECT pid, substr(job_id, 4) FROM finetune.progress;');
	}
	return sort { $place{ $a->[1] } <=> $place{ $b->[1] } } grep { exists $job{ $_->[1] } } @found;
}

sub end_worker
{
	my ($number, $kind) = @_;
	my $worker = pick($number, workers()) // return 0;

	hit($worker->[1], $kind, time);
	return sql('postgres', "SELECT pg_terminate_backend($worker->[0]);") eq 't';
}

sub end_reader
{
	my ($number, $kind) = @_;
	my ($pid, $db) = split /\|/, sql('postgres',
		q(SELECT pid, datname FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader' AND query <> '')
		  . ' ORDER BY pid LIMIT 1;');

	if (!$pid)
	{
		# nobody reads slowly enough to be hit, nor will
		create_job(recipe => 1) if !grep { $recipes[ $job{$_}{recipe} ]{query} eq $slow && !$job{$_}{attempt} } unfinished();
		return 0;
	}
	look_at_jobs($db);
	my @reading = grep { $job{$_}{db} eq $db && $job{$_}{phase} eq 'pending' && $job{$_}{attempt} > 0 } unfinished();
	return 0 if !@reading || grep { $job{$_}{fruitless} > 2 } @reading;
	hit($_, $kind, @reading == 1 ? time : undef) for @reading;
	return sql('postgres', "SELECT pg_terminate_backend($pid);") eq 't';
}

sub end_process
{
	my ($signal, $title) = @_;
	return sub {
		my $pid = named_child($postmaster, $title) // return 0;
		push @serve_faults, time if $title =~ /server/ && !@serve_faults;
		return kill $signal, $pid;
	};
}

# What users do to their jobs; false when there is none.
sub users_job
{
	my ($number, $with_paused) = @_;
	my @from = grep {
		$job{$_}{wanted} eq 'SUCCESS' && ($with_paused || ($job{$_}{phase} // '') ne 'paused') && !$job{$_}{stopped}
	} unfinished();
	my $id = pick($number, @from) // return undef;

	return $job{$id};
}

sub cancel_job
{
	my ($number) = @_;
	my $this = users_job($number, 1) // return 0;

	$this->{wanted} = as_user($this, "SELECT finetune('CANCEL', 'ft_$this->{id}')->>'status'");
	wrong('unexpected errors', "CANCEL left job $this->{id} $this->{wanted}")
	  if $this->{wanted} !~ /^(CANCELLED|SUCCESS)$/;
	return 1;
}

sub pause_job
{
	my ($number) = @_;
	my $this = users_job($number, 0) // return 0;

	# it may end at this very moment, which is an error of the user's
	my $answer = $control{ $this->{db} }->query(
		"SET ROLE $this->{owner}; SELECT finetune('PAUSE', 'ft_$this->{id}')->>'status'; RESET ROLE;");
	return 1 if $answer =~ /ERROR:  55000: job "ft_$this->{id}" has ended/;
	wrong('unexpected errors', "PAUSE of job $this->{id}: $answer") if $answer ne 'PAUSED';
	$this->{phase} = 'paused';
	$this->{pauses}++;
	push @later, [ time + ($number % 2500) / 1000, sub { resume_job($this) } ];
	return 1;
}

sub resume_job
{
	my ($this) = @_;

	return if $this->{ended} || $this->{wanted} ne 'SUCCESS';
	my $answer = as_user($this, "SELECT finetune('RESUME', 'ft_$this->{id}')->>'status'");
	wrong('unexpected errors', "RESUME of job $this->{id}: $answer") if $answer !~ /^(PENDING|IN_PROGRESS)$/;
	$this->{phase} = 'queued';
	return;
}

sub drop_model
{
	my ($number) = @_;
	my $this = users_job($number, 1) // return 0;

	$this->{dropped} = 1;
	as_user($this, "DROP SERVER $this->{name}");
	$this->{wanted} = sql($this->{db}, "SELECT status FROM finetune.job_detail WHERE id = '$this->{id}';");
	wrong('unexpected errors', "DROP SERVER left job $this->{id} $this->{wanted}")
	  if $this->{wanted} !~ /^(CANCELLED|SUCCESS)$/;
	return 1;
}

# A CREATE, or a DROP, that is as if it had not been.
sub roll_back
{
	my ($number) = @_;
	my ($db, $name, $create) = ($databases[ $number % 2 ], "undone_$number", create_sql("undone_$number", 0, 9));

	if ($number % 3 == 0)
	{
		my $this = users_job($number, 0) // return 0;
		sql($this->{db}, "BEGIN; DROP SERVER $this->{name}; SELECT pg_sleep(0.2); ROLLBACK;");
		return 1;
	}
	my $undo = $number % 3 == 1 ? "BEGIN; $create; ROLLBACK;" : "BEGIN; SAVEPOINT s; $create; ROLLBACK TO s; COMMIT;";
	my $id = sql($db, $undo) =~ s/^ft_//r;
	wrong('lost or doubled jobs', "job $id of a CREATE that was rolled back")
	  if sql($db, "SELECT 1 FROM finetune.job WHERE id = '$id' UNION ALL SELECT 1 FROM finetune.model WHERE name = '$name';") ne '';
	return 1;
}

sub set_threads
{
	my ($threads) = @_;

	sql('postgres', "ALTER SYSTEM SET pg_finetune.threads = $threads;");
	sql('postgres', 'SELECT pg_reload_conf();');
	return;
}

sub change_settings
{
	my ($number) = @_;
	my ($jobs, $threads) = (1 + $number % 3, 1 + int($number / 3) % 2);

	sql('postgres', "ALTER SYSTEM SET pg_finetune.max_running_jobs = $jobs;");
	set_threads($threads);
	return 1;
}

sub close_connection
{
	my ($number) = @_;
	my $session = session($databases[ $number % 2 ], 'soak leaves');

	$session->ask(q(SELECT complete('tiny', 'item 1', '{"temperature": 1.5}') FROM generate_series(1, 100);));
	push @later, [ time + 0.1 + ($number % 200) / 1000, sub { $session->end('KILL') } ];
	return 1;
}

sub end_session
{
	my ($number) = @_;
	my $name = $asking[ $number % @asking ]{name};

	return sql('postgres',
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '$name';") eq 't';
}

# Faults of the server itself.  All that runs is hit.
sub hit_all
{
	my ($kind) = @_;
	hit($_->[1], $kind, time) for workers();
	return;
}

sub crash
{
	my ($find) = @_;
	return sub {
		my ($number, $kind) = @_;
		my $pid = $find->($number) // return 0;

		hit_all($kind);
		$count{crashes}++;
		kill 'KILL', $pid;
		return 1;
	};
}

sub a_session
{
	return sql('postgres', q(SELECT min(pid) FROM pg_stat_activity WHERE application_name ~ '^soak asks';)) || undef;
}

sub restart
{
	my ($mode) = @_;
	return sub {
		my ($number, $kind) = @_;

		hit_all($kind);
		$count{restarts}++;
		$node->restart($mode);
		$postmaster = postmaster();
		return 1;
	};
}

# kind => [weight, what it does]
my %faults = (
	'training engine killed (KILL)'       => [ 5, signal_engine('KILL') ],
	'training engine killed (SEGV)'       => [ 3, signal_engine('SEGV') ],
	'training engine ended (TERM)'        => [ 3, signal_engine('TERM') ],
	'training engine stopped, then killed' => [ 3, \&stop_engine ],
	'serving engine killed (KILL)'        => [ 3, signal_server_engine('KILL') ],
	'serving engine ended (TERM)'         => [ 2, signal_server_engine('TERM') ],
	'job worker terminated'               => [ 4, \&end_worker ],
	'reader terminated'                   => [ 3, \&end_reader ],
	'launcher terminated'                 => [ 1, end_process('TERM', 'pg_finetune launcher') ],
	'server worker terminated'            => [ 1, end_process('TERM', 'pg_finetune server') ],
	'CANCEL'                              => [ 2, \&cancel_job ],
	'PAUSE, then RESUME'                  => [ 3, \&pause_job ],
	'DROP SERVER'                         => [ 2, \&drop_model ],
	'ROLLBACK'                            => [ 2, \&roll_back ],
	'settings reloaded'                   => [ 2, \&change_settings ],
	'connection closed in an answer'      => [ 2, \&close_connection ],
	'session terminated'                  => [ 2, \&end_session ],
	$crashes
	? (
		'job worker killed' => [ 2, crash(sub { (pick($_[0], workers()) // [])->[0] }) ],
		'launcher killed'   => [ 1, crash(sub { named_child($postmaster, 'pg_finetune launcher') }) ],
		'server worker killed' => [ 1, crash(sub { named_child($postmaster, 'pg_finetune server') }) ],
		'session killed' => [ 1, crash(\&a_session) ],
		'restart -m fast'      => [ 1, restart('fast') ],
		'restart -m immediate' => [ 1, restart('immediate') ],
	  )
	: ());

# All of them, drawn before the first: kind, seconds since the one before, and a number to choose with.
sub draw_faults
{
	my @kinds = map { ($_) x $faults{$_}[0] } sort keys %faults;
	return map { {
			kind   => $kinds[ roll($fault_dice, scalar @kinds) ],
			wait   => 0.1 + roll($fault_dice, 900) / 1000,
			number => roll($fault_dice, 1_000_000),
		} } 1 .. $wanted;
}

# ---- What must hold all the time ----

sub postmaster { return (split /\n/, slurp_file("$data/postmaster.pid"))[0]; }

sub look_at_processes
{
	my %parents = map { $_ => 1 } children($postmaster);
	my $engines = engines($program, $data);
	my (%orphan, %works);

	for my $pid (sort { $a <=> $b } keys %$engines)
	{
		my $engine = $engines->{$pid};
		# seen twice, since the one may end between two looks
		if (!$parents{ $engine->{parent} })
		{
			$orphan{$pid} = 1;
			wrong('orphan engines', "process $pid, $engine->{kind}") if $suspect{$pid};
		}
		push @{ $works{ $engine->{job} // $engine->{kind} } }, $pid;
	}
	%suspect = %orphan;
	my %now = map { join(' ', @{ $works{$_} }) => $_ } grep { @{ $works{$_} } > 1 } keys %works;
	for my $pids (keys %now)
	{
		wrong('lost or doubled jobs', "$now{$pids} has engines $pids") if $doubled{$pids};
	}
	%doubled = %now;
	return;
}

my $last_look = 0;

sub tick
{
	attend_askers();
	for my $due (grep { $_->[0] <= time } @later) { $due->[1]->(); }
	@later = grep { $_->[0] > time } @later;
	if (time - $last_look > 0.5)
	{
		look_at_jobs($_) for @databases;
		look_at_processes();
		$last_look = time;
	}
	sleep 0.02;
	return;
}

# ---- The course of it ----

sub set_up
{
	$node = new_node('soak', <<'CONF');
restart_after_crash = on
pg_finetune.max_running_jobs = 2
max_connections = 30
log_min_messages = info
CONF
	$data       = abs_path($node->data_dir);
	$postmaster = postmaster();
	chomp(my $library = qx(pg_config --pkglibdir));
	$program = abs_path("$library/pg_finetune_engine");

	$node->safe_psql('postgres', "CREATE ROLE $_ LOGIN") for @owners;
	$node->safe_psql('postgres', 'CREATE DATABASE second');
	$node->safe_psql('second', <<'SQL');
CREATE EXTENSION pg_finetune;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE fact (id int PRIMARY KEY, prompt text, completion text);
INSERT INTO fact SELECT i, 'item ' || i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END
	FROM generate_series(1, 100) i;
SQL
	for my $db (@databases)
	{
		my $roles = join ', ', @owners;
		$node->safe_psql($db, "GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO $roles;"
			  . " GRANT USAGE ON FOREIGN SERVER tiny TO $roles; GRANT SELECT ON fact TO $roles;");
		$control{$db} = session($db, "soak control");
	}
	return;
}

# An undisturbed job of each recipe and number of threads, and its answers.
sub make_references
{
	for my $threads (2, 1)
	{
		my $name = $threads == 1 ? 'reference' : 'threads';

		set_threads($threads);
		create_job(db => $databases[ $threads - 1 ], recipe => $_, name => "${name}_$_") for 0 .. $#recipes;
		my $until = time + 240;
		while (unfinished() && time < $until) { tick(); }
		die "undisturbed jobs did not end well\n" if unfinished() || %wrong;
	}
	for my $name ('tiny', map { "reference_$_" } 0 .. $#recipes)
	{
		for my $prompt (@prompts)
		{
			my $key = ($name =~ /_(\d+)/ ? $1 : 'tiny') . "|$prompt";
			$expected{$key} = sql('postgres', question($name, $prompt));
		}
	}
	return;
}

sub run_faults
{
	my $next = time;
	my $since;

	for my $fault (draw_faults())
	{
		$next += $fault->{wait};
		my $until = time + 120;
		while (1)
		{
			keep_busy();
			tick();
			next if time < $next;
			last if $faults{ $fault->{kind} }[1]->($fault->{number}, $fault->{kind});
			# there is nobody whom it could hit: wait a little
			die "nothing to hit for: $fault->{kind}\n" if time > $until;
		}
		$next = time;
		$count{faults}++;
		$kind_count{ $fault->{kind} }++;
		say_it("$count{faults} faults, " . @order . ' jobs, ' . ($count{completions} // 0) . ' completions')
		  if $count{faults} % 50 == 0;
	}
	return;
}

# No more faults: everything ends, and nothing is left.
sub settle
{
	my $until = time + 240;

	while ((unfinished() || @later || grep { $_->{question} } @asking) && time < $until)
	{
		$_->{next} = $until for @asking;
		tick();
	}
	for my $id (unfinished())
	{
		wrong('lost or doubled jobs', "job $id has not ended: " . story($job{$id}));
	}
	for my $db (@databases)
	{
		my $is    = sql($db, 'SELECT string_agg(id || phase, \' \' ORDER BY id) FROM finetune.job;');
		my $to_be = join ' ', map { $_ . $job{$_}{phase} } sort grep { $job{$_}{db} eq $db } @order;
		wrong('lost or doubled jobs', "jobs of $db at the end: $is, not $to_be") if $is ne $to_be;

		my $names = "SELECT coalesce(string_agg(%s, ' ' ORDER BY %s COLLATE \"C\"), '') FROM %s";
		$to_be = join ' ', sort 'tiny', map { $_->{name} } ready($db);
		for my $what ([ 'srvname::text', 'pg_foreign_server' ], [ 'name', 'finetune.model' ])
		{
			$is = sql($db, sprintf("$names;", $what->[0], @$what));
			wrong('lost or doubled jobs', "models of $db at the end, $what->[1]: $is, not $to_be") if $is ne $to_be;
		}
		$is = sql($db, 'SELECT count(*) FROM finetune.weights w WHERE NOT EXISTS'
			  . ' (SELECT FROM finetune.model m WHERE m.id = w.model_id);');
		wrong('lost or doubled jobs', "$is parts of weights without a model in $db") if $is ne '0';
	}
	return;
}

sub stop_all
{
	$_->end for @asking, values %control;
	$node->stop;
	my $until = time + 10;
	my $engines;
	while (%{ $engines = engines($program, $data) } && time < $until) { sleep 0.1; }
	wrong('orphan engines', "process $_ after the server's end") for keys %$engines;
	return;
}

sub report
{
	my $line = sub { say_it(sprintf '%-48s %8s%s', @_, ('') x (3 - @_)); };
	my %by_end;
	$by_end{ $job{$_}{ended} // 'not ended' }++ for @order;
	my ($kind) = sort { $slowest{$b}{seconds} <=> $slowest{$a}{seconds} } grep { $_ ne 'answer' } keys %slowest;

	say_it("seed $seed (again: make soak FAULTS=$wanted SEED=$seed" . ($crashes ? ' CRASHES=1)' : ')'));
	$line->('faults', $count{faults} // 0, '    longest time to the resume');
	$line->("  $_", $kind_count{$_}, $slowest{$_} ? sprintf('%9.2f s', $slowest{$_}{seconds}) : '')
	  for sort keys %kind_count;
	$line->('jobs', scalar @order, '    ' . join ', ', map { "$by_end{$_} $_" } sort keys %by_end);
	$line->('  compared with an undisturbed one', $count{compared} // 0);
	$line->('completions', $count{completions} // 0, sprintf '    %d ended by an error of a fault', $count{refused} // 0);
	$line->('postmaster restarts', $count{restarted} // '?');
	$line->($_, scalar @{ $wrong{$_} // [] })
	  for 'lost or doubled jobs', 'orphan engines', 'leaked files', 'other weights', 'other metrics', 'attempts',
	  'other answers', 'lost answers', 'unexpected errors', 'words in the log';
	$line->('longest time from a fault to the resume', sprintf('%.2f s', $slowest{$kind}{seconds}), "    $kind")
	  if defined $kind;
	$line->('longest time from a fault to an answer', sprintf('%.2f s', $slowest{answer}{seconds})) if $slowest{answer};
	return;
}

say_it("seed $seed, $wanted faults" . ($crashes ? ', crashes among them' : ''));
set_up();
make_references();
@asking = map { session($databases[ $_ % 2 ], "soak asks $_") } 1 .. $askers;
$_->{next} = time for @asking;
if (!eval { run_faults(); settle(); 1 })
{
	wrong('unexpected errors', "the soak itself: $@");
}
wrong('leaked files', $_) for leaked_files("$data/pgsql_tmp_finetune");
stop_all();
$count{restarted} = server_restarts($node->logfile);
wrong('postmaster restarts', $count{restarted}) if $count{restarted} != 0 && !$crashes;
wrong('words in the log', $_) for bad_lines($node->logfile, $kind_count{'training engine killed (SEGV)'} // 0);
report();

is(scalar @{ $wrong{$_} // [] }, 0, $_) for sort keys %wrong;
is($count{faults}, $wanted, 'all faults were provoked');
cmp_ok(scalar @order, '>', @recipes, 'jobs were run');
cmp_ok($count{compared}, '>', 2 * @recipes, 'and compared');
cmp_ok($count{completions} // 0, '>', 0, 'questions were answered');
done_testing();
