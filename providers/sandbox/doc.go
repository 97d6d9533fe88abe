// Package sandbox runs stand-ins for vendors on the loopback interface, for
// `taskpass demo`, `taskpass dev` and tests. They speak the vendors' wire protocols,
// keep state, and enforce what the vendors enforce, so that what the broker hands out
// can be seen to work, and to stop.
//
// It decides what exists in the demo: one AWS account with one role and one bucket,
// one Google Cloud project with a few service accounts and one bucket, and one vendor
// of model keys. It knows nothing of Taskpass itself, and it is never
// a default when the broker serves.
package sandbox
