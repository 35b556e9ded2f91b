// Package ycsb runs the core workloads of the Yahoo! Cloud Serving Benchmark (Cooper et al., SoCC
// 2010) over any driver of package loadgen, under the property names that YCSB's tools share, so
// that their property files and habits can be used.
//
// A record is fieldcount fields of fieldlength random bytes, stored as one value. Unless
// writeallfields is set, an update reads the record, replaces one field and writes it, because the
// stores know no fields.
package ycsb
