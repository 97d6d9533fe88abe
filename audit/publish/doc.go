// Package publish puts checkpoints outside the database: to a file, to an HTTP hook, into an S3 bucket. Whoever owns the
// database can rewrite what is in it, and cannot rewrite these.
//
// Each destination is served by itself: one that is slow or dead holds no other up (P11). The newest checkpoint is tried
// until it is there or a newer one takes its place, for a newer one says all that an older one does.
package publish
