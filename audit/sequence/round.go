package sequence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// round is one transaction of a Sequencer.
type round struct {
	*Sequencer
	ctx context.Context
	tx  pgx.Tx

	published []tree.Checkpoint // what was read back and not yet held against the tree
	known     tree.Checkpoint   // the newest that is known to be signed
	signed    tree.Checkpoint   // what this round signed; Size 0: nothing
	size      int64             // of the tree
	last      position          // of its last leaf
	more      bool
}

// position is an event's place in the order of the record.
type position struct {
	xid uint64
	seq int64
}

// rewritten is why a tree is refused.
type rewritten struct{ reason string }

func (r *rewritten) Error() string { return r.reason }

func (r *round) run(tx pgx.Tx) error {
	r.tx = tx
	var mine bool
	// The lock ends with the transaction, whatever happens to the process.
	if err := tx.QueryRow(r.ctx, "SELECT pg_try_advisory_xact_lock(hashtextextended('taskpass:audit_tree', 0))").Scan(&mine); err != nil || !mine {
		return err
	}
	if _, err := tx.Exec(r.ctx, "SELECT "+inOrder); err != nil {
		return err
	}
	if err := r.head(); err != nil {
		return err
	}
	newest, err := r.newest()
	if err != nil {
		return err
	}
	if err := r.extends(newest); err != nil {
		return err
	}
	if err := r.grow(); err != nil {
		return err
	}
	r.Reached(r.ctx, "in_round")
	if err := r.sign(); err != nil {
		return err
	}
	r.Reached(r.ctx, "before_commit")
	return nil
}

// head reads where the tree ends.
func (r *round) head() error {
	var ahead bool
	err := r.tx.QueryRow(r.ctx, `SELECT idx + 1, xid, seq, xid >= pg_snapshot_xmax(pg_current_snapshot())
		FROM tree_leaves ORDER BY idx DESC LIMIT 1`).Scan(&r.size, &r.last.xid, &r.last.seq, &ahead)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		r.last = firstPosition
		return nil
	case err != nil:
		return err
	case ahead:
		// A logical restore into a fresh cluster, or a leaf made up to hide what comes: either way new events would be
		// passed over.
		return &rewritten{"the tree's last leaf is of a transaction that this database has not had yet"}
	}
	return nil
}

// newest reads the newest checkpoint that the database has. It is worth its signature: a row that does not open is as
// good as none, and what this process knows itself still counts.
func (r *round) newest() (c tree.Checkpoint, err error) {
	var text string
	err = r.tx.QueryRow(r.ctx, newestNote+" LIMIT 1", r.keys.Origin()).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c, err = r.keys.Open([]byte(text))
	if err != nil {
		r.Logger.Warn("the newest stored checkpoint is not signed by a key of this configuration", "error", err)
		return tree.Checkpoint{}, nil
	}
	return c, nil
}

// extends holds the tree in the database against what was signed: by this process, by any before it as far as it was
// published, and by the others as far as the database tells.
func (r *round) extends(newest tree.Checkpoint) error {
	roots := map[int64]tlog.Hash{}
	for _, c := range append([]tree.Checkpoint{r.known, newest}, r.published...) {
		if c.Size == 0 {
			continue
		}
		if root, again := roots[c.Size]; again && root != c.Root {
			return &rewritten{fmt.Sprintf("two checkpoints are signed for %d events, with different roots", c.Size)}
		}
		roots[c.Size] = c.Root
		if c.Size > r.known.Size || c.Size == r.known.Size && c.At.After(r.known.At) {
			r.known = c
		}
	}
	for _, size := range slices.Sorted(maps.Keys(roots)) {
		if size > r.size {
			return &rewritten{fmt.Sprintf("the tree has %d events, a signed checkpoint %d", r.size, size)}
		}
		root, err := tlog.TreeHash(size, r.hashes())
		if errors.Is(err, errTree) {
			return &rewritten{fmt.Sprintf("below the %d events that were signed, %v", size, err)}
		}
		if err != nil {
			return err
		}
		if root != roots[size] {
			return &rewritten{fmt.Sprintf("the first %d events do not come to the root that was signed for them", size)}
		}
	}
	return nil
}

func (r *round) hashes() hashes { return hashes{ctx: r.ctx, q: r.tx} }

// sign makes a checkpoint if one is due: when the tree has grown, and at least once a heartbeat.
func (r *round) sign() error {
	now := r.Clock()
	age := now.Sub(r.known.At)
	// Rounds come about Every after each other, now a little earlier and now later: of them the one that is nearest to it
	// signs. To ask for the whole of it would be to wait for the round after, every time that one comes early.
	due := r.known.Size == 0 || age >= r.Heartbeat || age < -r.Heartbeat || r.size > r.known.Size && age >= r.Every/2
	if !due || r.size == 0 {
		return nil
	}
	reader := r.hashes()
	root, err := tlog.TreeHash(r.size, reader)
	if err != nil {
		return err
	}
	if 0 < r.known.Size && r.known.Size < r.size {
		// The proof shows that the root just come to has the known one inside it, whatever was read in between.
		proof, err := tlog.ProveTree(r.size, r.known.Size, reader)
		if err != nil {
			return err
		}
		if tlog.CheckTree(proof, r.size, root, r.known.Size, r.known.Root) != nil {
			return &rewritten{fmt.Sprintf("the tree of %d events does not extend the one of %d that was signed", r.size, r.known.Size)}
		}
	}
	if r.size == r.known.Size && root != r.known.Root {
		return &rewritten{fmt.Sprintf("the tree of %d events has another root than was signed", r.size)}
	}
	c, err := r.Signer.Sign(r.size, root, now)
	if err != nil {
		return err
	}
	if _, err := r.tx.Exec(r.ctx, "INSERT INTO tree_checkpoints (size, at, note) VALUES ($1, $2, $3)", c.Size, c.At, c.Note); err != nil {
		return err
	}
	r.signed, r.known = c, c
	return nil
}

// leaf is an event on its way into the tree.
type leaf struct {
	position
	id   string
	at   time.Time
	hash tlog.Hash
}
