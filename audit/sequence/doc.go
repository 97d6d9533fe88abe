// Package sequence keeps the record's tree in PostgreSQL: it puts committed events into the tree, signs checkpoints, and
// reads proofs and exports out of it. What a tree is, and whether one holds, is audit/tree's business.
//
// The order of the events is the database's, (xid, seq), and only what lies below the oldest transaction still open is
// taken: nothing can come in before it. One process at a time does it, under an advisory lock of its transaction, and a
// round is one transaction: leaves, tiles and checkpoint are there together or not at all. A long transaction anywhere
// on the PostgreSQL cluster holds the tree back, and never puts an event out of order.
//
// Whoever owns the database can rewrite the tables. So a Sequencer remembers what it signed and reads what was published
// outside the database; a tree that does not extend that is refused: nothing more is put into it or signed, and the
// alarm is raised. Issuing goes on.
package sequence
