package loadgen

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
)

// keyPrefix fills the front of a key of 16 bytes; longer keys get more of its last byte.
const keyPrefix = "bench___"

// MinKeySize is the size of the number that every key ends with.
const MinKeySize = 8

// spread is odd, so that multiplying by it maps the 64-bit numbers one to one, and it scatters
// neighbours.
const spread = 0x9e3779b97f4a7c15

// Key is the i-th key of a key space, size bytes long. Keys are scattered evenly over the range of
// their last eight bytes.
func Key(i uint64, size int) []byte {
	return keyAt(i*spread, size)
}

func keyAt(n uint64, size int) []byte {
	key := make([]byte, 0, size)
	for j := range size - MinKeySize {
		key = append(key, keyPrefix[min(j, len(keyPrefix)-1)])
	}
	return binary.BigEndian.AppendUint64(key, n)
}

// SplitKeys are the n-1 keys that part the key space into n ranges of about as many keys each.
func SplitKeys(n, size int) [][]byte {
	var keys [][]byte
	for i := 1; i < n; i++ {
		keys = append(keys, keyAt(math.MaxUint64/uint64(n)*uint64(i), size))
	}
	return keys
}

// source makes keys and values for one worker. Not safe for concurrent use.
type source struct {
	rand    *rand.Rand
	fill    *rand.ChaCha8
	zipf    *Zipf
	keys    uint64
	keySize int
	value   []byte
}

func newSource(c Config, seed uint64, zipf *Zipf) *source {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	fill := rand.NewChaCha8(key)
	return &source{
		rand: rand.New(rand.NewPCG(seed, spread)), fill: fill, zipf: zipf,
		keys: uint64(c.Keys), keySize: c.KeySize, value: make([]byte, c.ValueSize),
	}
}

func (s *source) index() uint64 {
	if s.zipf != nil {
		return s.zipf.Next(s.rand)
	}
	return s.rand.Uint64N(s.keys)
}

// nextValue is random bytes, which no store can compress. It is valid until the next call.
func (s *source) nextValue() []byte {
	_, _ = s.fill.Read(s.value) // never fails
	return s.value
}

// Zipf draws numbers of [0, n) so that number k comes up in proportion to 1/(k+1)^theta. It is safe
// for concurrent use with a source of randomness per caller.
type Zipf struct {
	n                        uint64
	theta, alpha, zetan, eta float64
	second                   float64 // below it a draw of u*zetan is number 1
}

// NewZipf makes a distribution over n > 0 numbers; theta is in (0, 1), 0.99 being usual. It takes
// time in proportion to n, up to some seconds for a billion.
//
// The method is that of Gray et al., "Quickly generating billion-record synthetic databases"
// (SIGMOD 1994), section 3.2; the generator of math/rand only knows exponents above 1.
func NewZipf(n uint64, theta float64) *Zipf {
	z := &Zipf{n: n, theta: theta, alpha: 1 / (1 - theta), second: 1 + math.Pow(0.5, theta)}
	for i := uint64(1); i <= n; i++ {
		z.zetan += 1 / math.Pow(float64(i), theta)
	}
	z.eta = (1 - math.Pow(2/float64(n), 1-theta)) / (1 - z.second/z.zetan)
	return z
}

// Next draws a number.
func (z *Zipf) Next(r *rand.Rand) uint64 {
	u := r.Float64()
	switch uz := u * z.zetan; {
	case uz < 1:
		return 0
	case uz < z.second:
		return min(1, z.n-1)
	}
	return min(uint64(float64(z.n)*math.Pow(z.eta*u-z.eta+1, z.alpha)), z.n-1)
}
