package sequence

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/broker"
)

// Included is one event's answer from IncludeSeveral: a proof as Include gives it, but without the event's Body, or why there
// is none.
type Included struct {
	Inclusion
	Err error
}

// IncludeSeveral proves events by their ids below the newest checkpoint, in a few statements however many there are. The
// caller compares the event that it has with the proof's Leaf. An error is about all of them: not_found if nothing is signed
// yet, record_tampered if no proof can be made.
func (l *Log) IncludeSeveral(ctx context.Context, eventIDs []string) ([]Included, error) {
	signed, err := l.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	leaves, err := l.leavesOf(ctx, eventIDs)
	if err != nil {
		return nil, err
	}
	// Tiles are read once for all, and kept: most proofs have those above in common.
	reader := hashes{ctx: ctx, q: l.pool, kept: map[place][]byte{}}
	if err := reader.load(leaves, signed.Size); err != nil {
		return nil, err
	}
	root, err := tlog.TreeHash(signed.Size, reader)
	if err == nil && root != signed.Root {
		err = fmt.Errorf("%w: it does not come to the signed root", errTree)
	}
	if err != nil {
		return nil, tampered(err)
	}
	list := make([]Included, len(eventIDs))
	for i, id := range eventIDs {
		in, there := leaves[id]
		in.EventID, in.Size, in.Root, in.Signed = id, signed.Size, root, signed
		if there && in.Index < signed.Size {
			in.Proof, err = tlog.ProveRecord(in.Size, in.Index, reader)
			if err == nil && tlog.CheckRecord(in.Proof, in.Size, root, in.Index, in.Leaf) != nil {
				err = fmt.Errorf("%w: the leaf of %s is not below the root", errTree, id)
			}
		} else {
			err = broker.Errorf(broker.CodeNotFound, "no such event is in the tree yet")
		}
		list[i] = Included{in, tampered(err)}
	}
	return list, nil
}

// load reads the stored tiles that the proofs of leaves need. What is wrong with one is for the proofs that need it to say.
func (h hashes) load(leaves map[string]Inclusion, size int64) error {
	var indexes []int64
	note := tlog.HashReaderFunc(func(list []int64) ([]tlog.Hash, error) {
		indexes = append(indexes, list...)
		return make([]tlog.Hash, len(list)), nil
	})
	for _, in := range leaves {
		if in.Index < size {
			if _, err := tlog.ProveRecord(size, in.Index, note); err != nil {
				return err
			}
		}
	}
	if _, err := h.ReadHashes(indexes); err != nil && !errors.Is(err, errTree) {
		return err
	}
	return nil
}

// leavesOf finds the first leaf of each event.
func (l *Log) leavesOf(ctx context.Context, eventIDs []string) (map[string]Inclusion, error) {
	rows, err := l.pool.Query(ctx, `SELECT DISTINCT ON (event_id) event_id, idx, hash FROM tree_leaves WHERE event_id = ANY ($1)
		ORDER BY event_id, idx`, eventIDs)
	if err != nil {
		return nil, err
	}
	leaves := make(map[string]Inclusion, len(eventIDs))
	var in Inclusion
	var hash []byte
	_, err = pgx.ForEachRow(rows, []any{&in.EventID, &in.Index, &hash}, func() error {
		copy(in.Leaf[:], hash)
		leaves[in.EventID] = in
		return nil
	})
	return leaves, err
}
