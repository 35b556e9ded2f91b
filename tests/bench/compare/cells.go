package main

import (
	"fmt"
	"strings"
)

// cell is one load: a phase with a number of workers.
type cell struct {
	phase   string
	workers int
}

func (c cell) String() string { return fmt.Sprintf("%s@%d", c.phase, c.workers) }

// matrix is what every store is put through.
var matrix = []cell{
	{"put", 1}, {"put", 32}, {"put", 128},
	{"get", 1}, {"get", 32}, {"get", 128},
	{"mixed", 1}, {"mixed", 32}, {"mixed", 128},
	{"scan", 1}, {"scan", 32}, {"scan", 128},
}

// idealCells and echoCells are enough of the matrix for the yardsticks.
var (
	idealCells = []cell{{"put", 1}, {"put", 128}, {"get", 1}, {"get", 128}}
	echoCells  = []cell{{"put", 128}, {"get", 1}, {"get", 128}}
)

// streamCells go over the batched stream.
var streamCells = []cell{{"put", 1}, {"put", 128}, {"get", 1}, {"get", 32}, {"get", 128}}

// clientgoCells go by TiKV's own Go client.
var clientgoCells = []cell{{"get", 128}, {"put", 128}}

// txnCells are transactions: of one key each, and etcd's of a comparison and a put.
var (
	txnCells = []cell{
		{"put", 1}, {"put", 32}, {"put", 128}, {"get", 1}, {"get", 128}, {"scan", 128},
	}
	etcdTxnCells = []cell{{"put", 1}, {"put", 32}, {"put", 128}}
)

// Values of up to 255 bytes lie in the records of their transactions; a longer one is a record of
// its own. The goals are for the former; txnLongCells measure what the first long value costs.
const (
	usualValue = 256
	txnValue   = 200
)

var txnLongCells = []cell{{"put", 128}, {"get", 128}}

// extras are measurements that are no load of the matrix.
const (
	extraStart    = "start"
	extraIdle     = "idle"
	extraFailover = "failover"
	extraRegions  = "regions32"
	extraRSS      = "rss"
)

const (
	streamPrefix   = "stream-"
	clientgoPrefix = "client-go-"
	txnPrefix      = "txn-"
	longPrefix     = "txn-long-"
)

// cellNames are all that may be chosen.
func cellNames() []string {
	var out []string
	for _, c := range matrix {
		out = append(out, c.String())
	}
	for _, c := range streamCells {
		out = append(out, streamPrefix+c.String())
	}
	for _, c := range clientgoCells {
		out = append(out, clientgoPrefix+c.String())
	}
	for _, c := range txnCells {
		out = append(out, txnPrefix+c.String())
	}
	for _, c := range txnLongCells {
		out = append(out, longPrefix+c.String())
	}
	return append(out, extraStart, extraIdle, extraRSS, extraFailover, extraRegions)
}

// figures are the measured numbers by "system/cell/what", one per round in which it was measured.
type figures map[string][]figure

type figure struct {
	round int
	value float64
}

func (f figures) add(round int, value float64, name ...string) {
	key := strings.Join(name, "/")
	f[key] = append(f[key], figure{round, value})
}

// values are all rounds' numbers.
func (f figures) values(key string) []float64 {
	var out []float64
	for _, v := range f[key] {
		out = append(out, v.value)
	}
	return out
}

// ratios pair the numbers of two keys round by round.
func (f figures) ratios(key, by string) []float64 {
	var out []float64
	for _, v := range f[key] {
		for _, w := range f[by] {
			if v.round == w.round && w.value != 0 {
				out = append(out, v.value/w.value)
			}
		}
	}
	return out
}
