// Package operator holds the plans of the placement service: an Operator is an ordered list of
// steps for one region, made for one epoch of it.
//
// Steps are tiny values. Whether a step is done is read from the region's record alone, so that it
// does not matter who carried it out or how often the command was sent. Influence says what the
// unfinished steps will still add to and take from each store.
package operator
