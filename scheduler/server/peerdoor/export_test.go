package peerdoor

import "time"

// SetHeaderTimeout is for before Serve.
func (d *Door) SetHeaderTimeout(t time.Duration) { d.headerTimeout = t }
