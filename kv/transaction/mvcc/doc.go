// Package mvcc keeps the versions of keys: it reads them from a view of a region, and gathers the
// changes that one command makes. It decides nothing; package commands does.
//
// A transaction has a start timestamp S and, once it commits, a commit timestamp C. Its value of a
// key lies in the default column family at S, or inside lock and write record if it is short; its
// lock in the lock family; its write record in the write family at C. A rollback leaves a write
// record at S. A read at R sees the Put or Delete with the largest C <= R.
//
// The bytes on disk are TiKV's (CodecTiKV; docs/storage-format.md). CodecCourse is for storages in
// memory only.
//
// Invariant: a write record whose kind is Put has its value, inline or in the default family at its
// StartTS.
package mvcc
