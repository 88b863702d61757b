# ServeTest.pm: starts `serve` in a folder of its own and speaks HTTP with it.
package ServeTest;

use strict;
use warnings;

use Fcntl qw(F_GETFD F_SETFD FD_CLOEXEC);
use File::Temp ();
use IO::Select;
use IO::Socket::UNIX;
use JSON::PP ();
use POSIX ();
use Socket qw(SOCK_STREAM);
use Time::HiRes qw(sleep time);

use constant PATIENCE => 120;    # seconds that anything may take at most

my $json = JSON::PP->new->canonical->utf8;

# ServeTest->new(args => [...]): the folder, with an engine that listens.
sub new
{
	my ($class, %options) = @_;
	my $folder = $options{folder} // File::Temp->newdir('serveXXXXXX', TMPDIR => 1);
	my $self   = bless {
		folder => $folder,
		socket => "$folder/socket",
		log    => "$folder/log",
		descriptors => $options{descriptors},    # a limit, or undef
		engine => $options{engine} // $ENV{ENGINE} // 'build/pg_finetune_engine',
	}, $class;
	$self->start(@{ $options{args} // [] });
	return $self;
}

# Start an engine on the socket; with a pipe that it is to watch.
sub start
{
	my ($self, @args) = @_;
	pipe(my $read, my $write) or die "pipe: $!";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		close $write;
		fcntl($read, F_SETFD, 0) or POSIX::_exit(125);
		open STDERR, '>>', $self->{log} or POSIX::_exit(125);
		my @limited = $self->{descriptors} ? ('sh', '-c', "ulimit -n $self->{descriptors}; exec \"\$0\" \"\$@\"") : ();
		exec @limited, $self->{engine}, 'serve', '--socket', $self->{socket}, '--threads', 2,
			'--control-fd', fileno($read), @args
			or POSIX::_exit(125);
	}
	close $read;
	$self->{pid}     = $pid;
	$self->{control} = $write;
	delete $self->{status};
	wait_until(sub { $self->exited || (-S $self->{socket} && $self->connect_quietly) });
	die "the engine did not start: " . $self->log_text if $self->exited;
	return;
}

# True, and the wait status in {status}, once the process has gone.
sub exited
{
	my ($self) = @_;
	return 1 if exists $self->{status};
	return 0 if waitpid($self->{pid}, POSIX::WNOHANG()) != $self->{pid};
	$self->{status} = $?;
	return 1;
}

sub wait_exit
{
	my ($self) = @_;
	wait_until(sub { $self->exited }) or die 'the engine does not end';
	return $self->{status};
}

sub stop
{
	my ($self) = @_;
	return if $self->exited;
	kill 'TERM', $self->{pid};
	return $self->wait_exit;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	kill 'KILL', $self->{pid} if !$self->exited;
	$self->wait_exit;
	return;
}

sub log_text
{
	my ($self) = @_;
	open my $fh, '<', $self->{log} or return '';
	local $/ = undef;
	return scalar <$fh>;
}

# Call until it is true; false when it never is.
sub wait_until
{
	my ($condition) = @_;
	my $end = time() + PATIENCE;
	while (time() < $end)
	{
		my $result = $condition->();
		return $result if $result;
		sleep(0.02);
	}
	return;
}

sub connect_quietly
{
	my ($self) = @_;
	return IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => $self->{socket});
}

# A new connection.
sub connect
{
	my ($self) = @_;
	my $s = $self->connect_quietly or die "could not connect to $self->{socket}: $!";
	return $s;
}

# Send a request on a connection; a body that is a reference goes as JSON.
sub send_request
{
	my ($self, $s, $method, $path, $body) = @_;
	my $text = defined $body ? ref $body ? $json->encode($body) : $body : '';
	my $head = "$method $path HTTP/1.1\r\nHost: localhost\r\n";
	$head .= 'Content-Length: ' . length($text) . "\r\n" if $method eq 'POST';
	my $all = "$head\r\n$text";
	my $at  = 0;
	local $SIG{PIPE} = 'IGNORE';
	while ($at < length $all)
	{
		my $n = syswrite($s, $all, length($all) - $at, $at);
		last if !$n;    # the server may have answered and closed before it had read everything
		$at += $n;
	}
	return;
}

# Read a reply: (status, decoded body), or nothing when the connection ends first.
sub read_reply
{
	my ($self, $s) = @_;
	my $text   = delete ${*$s}{rest} // '';    # of the replies before
	my $select = IO::Select->new($s);
	while (1)
	{
		if ($text =~ /\A(.*?)\r\n\r\n/s)
		{
			my ($head, $from) = ($1, $+[0]);
			my ($status) = $head =~ m{\AHTTP/1\.1 (\d+)};
			my ($length) = $head =~ /^Content-Length: (\d+)/im;
			if (defined $length && length($text) >= $from + $length)
			{
				my $body = substr($text, $from, $length);
				${*$s}{rest} = substr($text, $from + $length);
				return ($status, eval { $json->decode($body) } // $body);
			}
		}
		die 'no reply' if !$select->can_read(PATIENCE);
		return         if !sysread($s, $text, 65536, length $text);
	}
	return;
}

# Read a reply that comes in pieces: (status, head, [its events]).
sub read_stream
{
	my ($self, $s) = @_;
	my ($text, $body) = ('', '');
	my $select = IO::Select->new($s);
	until ($text =~ /\r\n0\r\n\r\n\z/)
	{
		die 'no reply' if !$select->can_read(PATIENCE);
		last           if !sysread($s, $text, 65536, length $text);
	}
	my ($head, $rest) = split /\r\n\r\n/, $text, 2;
	my ($status) = $head =~ m{\AHTTP/1\.1 (\d+)};
	while ($rest =~ s/\A([0-9a-f]+)\r\n//i)
	{
		$body .= substr($rest, 0, hex $1);
		substr($rest, 0, hex($1) + 2) = '';
	}
	my @events = map { $_ eq '[DONE]' ? $_ : $json->decode($_) } $body =~ /^data: (.*)\n\n/mg;
	return ($status, $head, \@events);
}

# A whole request on a connection of its own: (status, body).
sub request
{
	my ($self, $method, $path, $body) = @_;
	my $s = $self->connect;
	$self->send_request($s, $method, $path, $body);
	return $self->read_reply($s);
}

sub get { my ($self, $path) = @_; return $self->request('GET', $path) }
sub post { my ($self, $path, $body) = @_; return $self->request('POST', $path, $body) }

# Several requests at once, one a connection; their replies in order.
sub post_all
{
	my ($self, @requests) = @_;
	my @sockets = map {
		my $s = $self->connect;
		$self->send_request($s, 'POST', @$_);
		$s
	} @requests;
	return map { [ $self->read_reply($_) ] } @sockets;
}

1;
