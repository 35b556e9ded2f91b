package security

import (
	"fmt"
	"net"
	"strings"
)

// LoopbackHost tells whether a host or IP is reached from this machine only. A name other than
// localhost is not trusted to stay what it is.
func LoopbackHost(host string) bool {
	host = hostOf(host)
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.SplitN(host, "%", 2)[0])
	return ip != nil && ip.IsLoopback()
}

// AnyHost tells whether a host means all addresses of a machine. A server may listen there, but no
// client can connect to it.
func AnyHost(host string) bool {
	host = hostOf(host)
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// CheckListen refuses to listen in the clear on an address that other machines reach, unless the
// operator has said that this is meant. what names the option with the address.
func CheckListen(what, hostport string, secure, insecure bool) error {
	if secure || insecure || LoopbackHost(hostport) {
		return nil
	}
	return fmt.Errorf(
		"%s: %s is reached from other machines and would be served without TLS: everybody there could "+
			"read and change all data; listen on 127.0.0.1, set the TLS files of [security], or accept it with --insecure",
		what, hostport)
}
