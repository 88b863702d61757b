# Endpoint.pm: servers for tests of endpoints, and certificates for them.
package Endpoint;

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use File::Temp ();
use POSIX ();
use Time::HiRes qw(sleep time);

my $here = dirname(abs_path(__FILE__));

# Endpoint->new: the server of endpoint_server.pl; Endpoint->new(tls => PORT,
# certificates => DIRECTORY, name => NAME): tls_proxy.pl in front of that port.
sub new
{
	my ($class, %option) = @_;
	my $folder = File::Temp->newdir('endpointXXXXXX', TMPDIR => 1);
	my $self   = bless { folder => $folder }, $class;
	my @command = $option{tls}
	  ? ("$here/tls_proxy.pl", "$folder/port", $option{tls}, map { "$option{certificates}/$option{name}.$_" } 'crt', 'key')
	  : ("$here/endpoint_server.pl", "$folder/port");

	$self->{pid} = fork() // die "fork: $!";
	if ($self->{pid} == 0)
	{
		exec $^X, @command or POSIX::_exit(125);
	}
	my $end = time() + 60;
	until (-e "$folder/port")
	{
		die "no server: @command" if time() > $end || waitpid($self->{pid}, POSIX::WNOHANG()) != 0;
		sleep(0.02);
	}
	open my $file, '<', "$folder/port" or die "port: $!";
	chomp($self->{port} = <$file>);
	return $self;
}

sub url
{
	my ($self, $host, $scheme) = @_;
	return ($scheme // 'http') . '://' . ($host // '127.0.0.1') . ":$self->{port}";
}

sub stop
{
	my ($self) = @_;
	return if !$self->{pid};
	kill 'KILL', $self->{pid};
	waitpid($self->{pid}, 0);
	delete $self->{pid};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	$self->stop;
	return;
}

# An authority of our own, ca.crt, and certificates of it: good (for localhost and
# 127.0.0.1) and other (for another host).
sub certificates
{
	my ($directory) = @_;
	my $run = sub {
		system("openssl @_ >$directory/openssl.log 2>&1") == 0 or die "openssl @_ failed: see $directory/openssl.log";
	};

	$run->("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=authority -keyout $directory/ca.key -out $directory/ca.crt");
	for my $pair ([ good => 'DNS:localhost,IP:127.0.0.1' ], [ other => 'DNS:elsewhere.example' ])
	{
		my ($name, $names) = @$pair;

		open my $file, '>', "$directory/$name.ext" or die "$name.ext: $!";
		print $file "subjectAltName=$names\n";
		close $file;
		$run->("req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$name -keyout $directory/$name.key -out $directory/$name.csr");
		$run->("x509 -req -in $directory/$name.csr -CA $directory/ca.crt -CAkey $directory/ca.key -CAcreateserial -days 30 -extfile $directory/$name.ext -out $directory/$name.crt");
	}
	return;
}

1;
