// Package tree says what the record's Merkle tree is and whether it holds. It needs no database and no network, so that
// an auditor can verify what a broker's owner hands over.
//
// The tree is RFC 6962's: the hash of leaf i is that of the canonical bytes of event i, in the order in which the
// database committed them. A checkpoint is a note (C2SP signed-note, tlog-checkpoint) that says how large the tree was,
// what its root was and when; it is signed with Ed25519, during a rotation by more than one key. An export holds the
// events of a range with what is needed to come to the root from them. Verify holds one against the other.
//
// The package refuses to know how events come into the tree and who may ask.
package tree
