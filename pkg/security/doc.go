// Package security decides who may do what on the ports of the servers: which HTTP requests are
// served at all, which of them may change something, and where a server may listen.
//
// A web page that somebody looks at can make its browser send requests to any port that the browser
// reaches, also to one on the loopback address. The page cannot read the answers or set headers of
// its own unless the server agrees, but what the request does is done. Guard closes both ways that
// a page has: requests of its own origin to a foreign port (cross-site requests), and a name of its
// own that it lets point at that port (DNS rebinding).
package security
