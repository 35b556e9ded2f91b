package server

import "net/http"

func (s *Server) api() map[string]http.Handler { return map[string]http.Handler{} }
