// Package recovery decides what to do when more is lost than the cluster can mend: a placement
// service of which no member is left, and regions of which no majority is left. It reads reports of
// stores and makes plans; it does no IO.
//
// A plan says what may be lost before anything is done. Carrying it out is for kv/offline (a
// stopped store) and for the start of a placement service.
package recovery
