package client

import (
	"time"

	"google.golang.org/grpc/backoff"
)

// connectBackoff: a member that restarts must be found again within a second.
var connectBackoff = backoff.Config{
	BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second,
}
