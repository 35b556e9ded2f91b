// Package seaweedfs runs SeaweedFS, unmodified, with the metadata of its filers in a cluster of
// this project: the filers use TiKV's Go client. It is a module of its own, since it brings several
// hundred libraries with it.
package seaweedfs
