package sim

// rng is the only source of chance in a run: splitmix64, so that a seed means the same on every
// machine and in every Go version. Owner: the World, or the node it was forked for.
type rng struct{ state uint64 }

func (r *rng) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// Intn returns a number in [0, n).
func (r *rng) Intn(n int) int { return int(r.next() % uint64(n)) }

// between returns a number in [lo, hi].
func (r *rng) between(lo, hi int) int { return lo + r.Intn(hi-lo+1) }

// chance is true with probability p.
func (r *rng) chance(p float64) bool { return p > 0 && float64(r.next()>>11)/(1<<53) < p }

// float returns a number in [lo, hi).
func (r *rng) float(lo, hi float64) float64 { return lo + (hi-lo)*float64(r.next()>>11)/(1<<53) }

// pick returns one of the values.
func pick[T any](r *rng, values ...T) T { return values[r.Intn(len(values))] }

// fork gives an independent source, so that what one part draws does not shift the others.
func (r *rng) fork() *rng { return &rng{state: r.next()} }
