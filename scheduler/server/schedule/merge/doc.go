// Package merge decides which regions go into a neighbour because they have become small.
//
// A Policy is asked for one region at a time, by the planner's patrol. It looks at what is against
// a merge of the region into either neighbour, rule by rule, and plans the pair of operators for
// the best neighbour that nothing is against: the one to whose stores fewest replicas have to be
// moved, of several the smaller one. What it decides it decides by a view and by what it remembers:
// since when this member leads, which regions were split lately, which pairs have failed, and the
// ranges that are held.
//
// It is in no hurry. A merge only saves work, so everything else comes first: repair, balance, what
// a person has asked for.
//
// Regions do not go to and fro between a merge and a split. A source is small (a fifth of the size
// at which stores split, at most), both together have room (three fifths of it), so the halves of a
// joined region that has grown are no sources; and no region is merged within split-merge-interval
// of its last split.
//
// Safe for concurrent use. Lock order: Controller.mu < Policy.mu; the policy calls nobody with its
// lock held.
package merge
