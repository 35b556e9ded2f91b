package raftlog

import (
	"testing"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func sampleBatch() *Batch {
	var b Batch
	b.Reset(1, 5, 5)
	b.Append(1, []eraftpb.Entry{{Term: 6, Index: 6, Data: []byte("x")}, {Term: 6, Index: 7}})
	b.SetHardState(1, eraftpb.HardState{Term: 6, Vote: 2, Commit: 5})
	b.Truncate(1, 6, 6)
	b.Delete(2)
	return &b
}

// FuzzDecodeDir: any directory is decoded or refused, without panic and without allocating more
// than it justifies; what is accepted is within bounds.
func FuzzDecodeDir(f *testing.F) {
	b := sampleBatch()
	f.Add(b.dir, len(b.body))
	f.Add([]byte{byte(opMeta), 1, 2, 3, 4, 5, 6}, 0)
	f.Add([]byte{byte(opAppend), 1, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, 100)
	f.Fuzz(func(t *testing.T, dir []byte, bodyLen int) {
		var c contents
		if err := decodeDir(dir, bodyLen, &c); err != nil {
			return
		}
		if len(c.ents) > len(dir) || len(c.ops) > len(dir) {
			t.Fatalf("%d ops, %d entries from %d bytes", len(c.ops), len(c.ents), len(dir))
		}
		for _, o := range c.ops {
			off := o.bodyOff
			for _, m := range c.ents[o.entLo:o.entHi] {
				if m.len() < 0 || off+m.len() > bodyLen {
					t.Fatalf("entry at %d of %d bytes, body has %d", off, m.len(), bodyLen)
				}
				off += m.len()
			}
		}
	})
}

// FuzzReplay: whatever changes valid records describe, in whatever order, Open returns, and what it
// takes over can be read and written on. The input is cut into directories; lengths and checksums
// are made right, or hardly any input would get past them.
func FuzzReplay(f *testing.F) {
	b := sampleBatch()
	f.Add(b.dir, uint8(20))
	f.Add(append(b.dir, b.dir...), uint8(len(b.dir)))
	f.Add([]byte{
		byte(opRewrite), 1, 9, 1, 1, 0, 0, 0, 0, 0, byte(opAppend), 1, 1, 1, 1, 0, 0, 0, 0, 0,
	}, uint8(10))
	far := &Batch{}
	for _, first := range []uint64{1, 1 << 50, 3} {
		o := far.beginEntries(opRewrite, 1, first, 1)
		far.addEntry(entMeta{term: 1, crc: bodyCRC(1, first, 1, nil)}, nil)
		far.endEntries(o)
	}
	far.encode(opTruncate, 1, 1<<60, 1)
	f.Add(far.dir, uint8(255))
	f.Fuzz(func(t *testing.T, input []byte, cut uint8) {
		h := segmentHeader{number: 1, capacity: 64 << 10, salt: 1, baseSeq: 1}
		data := make([]byte, h.capacity)
		copy(data, h.encode())
		copy(data[segmentStart:], fuzzRecords(input[:min(len(input), 4<<10)], int(cut)))
		fs := faultfs.NewMemFS(nil)
		if err := fs.Mkdir("log"); err != nil {
			t.Fatal(err)
		}
		file, err := fs.Create("log/0000000001.rlog")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(data, 0); err != nil {
			t.Fatal(err)
		}
		checkReplayed(t, fs)
	})
}

// fuzzRecords makes records of input, of at most cut bytes of directory each.
func fuzzRecords(input []byte, cut int) []byte {
	var records []byte
	seq, prev := uint64(1), uint32(0)
	for len(input) > 0 {
		dir := input[:min(len(input), max(cut, 1))]
		input = input[len(dir):]
		var c contents
		_ = decodeDir(dir, 1<<20, &c)
		body := 0
		for _, m := range c.ents {
			body += m.len()
		}
		if body > 1<<10 {
			continue
		}
		records, prev = appendRecord(records, saltCRC(1), recordHeader{prev: prev, seq: seq}, dir,
			make([]byte, body))
		seq++
	}
	return records[:min(len(records), 48<<10)]
}

func checkReplayed(t *testing.T, fs *faultfs.MemFS) {
	l, err := Open("log", Options{SegmentSize: 16 << 10, Manual: true, FS: fs})
	if err != nil {
		return
	}
	for _, id := range l.Regions() {
		s, _ := l.State(id)
		if l.Damaged(id) != nil {
			continue
		}
		if _, err := l.Entries(id, s.First, s.Last+1, 1<<20); err != nil && s.First <= s.Last {
			t.Fatalf("region %d: %+v: %v", id, s, err)
		}
	}
	if err := l.Write(sampleBatch(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Reclaim(1 << 20); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
