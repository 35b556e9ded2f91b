package server

import clientv3 "go.etcd.io/etcd/client/v3"

// EtcdOf is the client that a member reaches its own etcd with, inside the process.
func EtcdOf(s *Server) *clientv3.Client { return s.node.(*node).client }
