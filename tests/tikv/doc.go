// Package tikv runs TiKV's own Go client, unmodified, against real processes of this project. It is
// a module of its own, so that the client comes with the libraries that it was released with, and
// shares none with the servers.
package tikv
