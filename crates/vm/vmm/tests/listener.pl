#!/usr/bin/perl
# Stands for a machine in tests of the fake backend: --listen-unix PATH, sends back every byte, ends on SIGTERM.
use strict;
use warnings;
use Socket;

my ($option, $path) = @ARGV;
die "usage: --listen-unix PATH\n" unless defined $path && $option eq '--listen-unix';
die "path $path asks for a failure\n" if $path =~ /refuse/;
$SIG{TERM} = sub { exit 0 };
socket(my $server, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
bind($server, sockaddr_un($path)) or die "bind: $!\n";
listen($server, 8) or die "listen: $!\n";
$| = 1;
print "listening\n";
while (accept(my $client, $server)) {
    while (sysread($client, my $bytes, 4096)) {
        syswrite($client, $bytes);
    }
}
