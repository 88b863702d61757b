# SoakSession.pm: a session of psql that is asked without being waited for.
package SoakSession;

use strict;
use warnings;

use IO::Handle;
use IO::Select;
use POSIX qw(WNOHANG);
use Time::HiRes qw(time sleep);

my $number = 0;

# A session; %with: host, port, db, name (its application_name), user.
sub new
{
	my ($class, %with) = @_;
	my $self = bless {%with}, $class;

	$self->connect;
	return $self;
}

sub connect
{
	my ($self) = @_;

	pipe(my $child_in, my $in)   or die "pipe: $!";
	pipe(my $out, my $child_out) or die "pipe: $!";
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<&', $child_in);
		untie *STDOUT;
		untie *STDERR;
		POSIX::dup2(fileno($child_out), 1);
		POSIX::dup2(fileno($child_out), 2);
		$ENV{PGAPPNAME} = $self->{name};
		exec('psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-h', $self->{host}, '-p', $self->{port},
		  '-d', $self->{db}, defined $self->{user} ? ('-U', $self->{user}) : ())
		  or POSIX::_exit(127);
	}
	close $child_in;
	close $child_out;
	$in->autoflush(1);
	$out->blocking(0);
	@$self{qw(pid in out text mark dead)} = ($pid, $in, $out, '', undef, 0);
	return;
}

# Ask; what comes back is for take() to get.
sub ask
{
	my ($self, $sql) = @_;

	local $SIG{PIPE} = 'IGNORE';
	$self->{mark}  = 'soak ' . ++$number . ' done';
	$self->{text}  = '';
	$self->{asked} = time;
	print { $self->{in} } "$sql\n\\echo '$self->{mark}'\n";
	return;
}

# What was answered, once all of it is there; else undef.  A session that is
# gone has `dead` set.
sub take
{
	my ($self) = @_;

	while (!$self->{dead})
	{
		my $read = sysread($self->{out}, $self->{text}, 65536, length $self->{text});
		last if !defined $read;
		$self->{dead} = 1 if $read == 0;
	}
	return undef if !defined $self->{mark};
	if ($self->{text} =~ s/^\Q$self->{mark}\E\n//m || $self->{dead})
	{
		# psql may not say at once that it has no connection
		$self->{dead} = 1 if $self->{text} =~ /server closed the connection|connection to server was lost|terminating connection/;
		$self->{mark} = undef;
		chomp(my $text = $self->{text});
		return $text;
	}
	return undef;
}

# Ask and wait.
sub query
{
	my ($self, $sql, $patience) = @_;
	my $until  = time + ($patience // 120);
	my $select = IO::Select->new($self->{out});

	$self->ask($sql);
	while (time < $until)
	{
		my $answer = $self->take;
		return $answer if defined $answer;
		$select->can_read(1);
	}
	die "no answer from $self->{name} to: $sql\n";
}

# End the client, with a signal or by closing its input.
sub end
{
	my ($self, $signal) = @_;

	kill $signal, $self->{pid} if $signal;
	close $self->{in};
	close $self->{out};
	waitpid $self->{pid}, 0;
	return;
}

sub reconnect
{
	my ($self) = @_;

	$self->end('KILL');
	$self->connect;
	return;
}

1;
