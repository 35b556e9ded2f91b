// Package txnsim runs transactions of the native client over the stores' commands in a model of a
// replicated cluster: stores whose replicas lag, leaders that are replaced while they do not know
// it, entries that the next leader commits or drops, views that are taken late, splits, lost and
// slow requests. Time is virtual, so a history takes milliseconds; the lists of package listappend
// judge it.
package txnsim
