// Package health judges the cluster: what is not as it should be, how bad it is, since when, and
// what to do.
//
// Assess is a pure function of a View, an immutable picture that the placement leader takes of
// stores, regions and members. Its Report is the only judgement there is: the API, the page, the
// metrics and tinyctl show it and add nothing of their own. docs/operations.md has the table of all
// conditions.
//
// A report never says that all is well about what is not known: as long as a new leader lacks
// reports of regions, the state is Unknown unless something bad is known already.
//
// Conditions of regions are gathered by code, with a few regions as examples, so that a report is
// small however many regions there are.
package health
