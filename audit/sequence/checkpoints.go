package sequence

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit/tree"
)

// checkpoints are the stored ones, up to the newest when the reading began.
type checkpoints struct {
	l    *Log
	ctx  context.Context
	upTo int64 // id of the newest
}

// notesAtOnce is how many stored checkpoints are read at a time: some 200 bytes each.
const notesAtOnce = 4096

func (l *Log) checkpoints(ctx context.Context) (c checkpoints, err error) {
	c = checkpoints{l: l, ctx: ctx}
	err = l.pool.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM tree_checkpoints").Scan(&c.upTo)
	return c, err
}

// notes gives them to a walk through the record: each is compared with the root at its size.
func (c checkpoints) notes() (*tree.Notes, error) {
	return c.l.keys.ReadNotes(func() (io.ReadCloser, error) {
		return io.NopCloser(&noteReader{checkpoints: c}), nil
	})
}

// noteReader is their notes in the order of their sizes, as a file of notes has them.
type noteReader struct {
	checkpoints
	size, id int64 // of the last that was read
	text     bytes.Buffer
	done     bool
}

func (r *noteReader) Read(p []byte) (int, error) {
	if r.text.Len() == 0 && !r.done {
		n := 0
		if err := readInOrder(r.ctx, r.l.pool, func(rows pgx.Rows) error {
			var note string
			_, err := pgx.ForEachRow(rows, []any{&r.size, &r.id, &note}, func() error {
				n++
				r.text.WriteString(note)
				r.text.WriteString("\n\n")
				return nil
			})
			return err
		}, "SELECT size, id, note FROM tree_checkpoints WHERE (size, id) > ($1, $2) AND id <= $3 ORDER BY size, id LIMIT $4",
			r.size, r.id, r.upTo, notesAtOnce); err != nil {
			return 0, err
		}
		r.done = n < notesAtOnce
	}
	return r.text.Read(p)
}

// altered names the stored checkpoints that are not as this log signed them. Each signature is verified, which takes about
// as long as reading as many events. What another log signed before this one's first or after its last stays unnamed: a
// tree goes on under another name once a database was restored, and that name's key is not here.
func (c checkpoints) altered() (tree.Report, error) {
	var found, others tree.Report // others: maybe of a log that came after this one
	ours := false                 // one of this log was there before
	for id, more := int64(0), true; more; {
		n := 0
		if err := readInOrder(c.ctx, c.l.pool, func(rows pgx.Rows) error {
			var size int64
			var at time.Time
			var note string
			_, err := pgx.ForEachRow(rows, []any{&id, &size, &at, &note}, func() error {
				n++
				signed, err := c.l.keys.Open([]byte(note))
				f := tree.Fault{What: tree.Unsigned, Index: size - 1}
				switch origin := tree.OriginOf([]byte(note)); {
				case err == nil && signed.Size == size && signed.At.Equal(at):
					found.Join(others.Faults...)
					found.More += others.More
					ours, others = true, tree.Report{}
					return nil
				case err == nil:
					f.Detail = "a checkpoint is stored with another size or time than was signed"
				case origin == "" || origin == c.l.keys.Origin():
					f.Detail = "no known key has signed what is stored as a checkpoint for so many events"
				case ours:
					f.Detail = "what is stored as a checkpoint for so many events is not of this log, and stands between those that are"
					others.Join(f)
					return nil
				default:
					return nil
				}
				found.Join(f)
				return nil
			})
			return err
		}, "SELECT id, size, "+finite("at")+", note FROM tree_checkpoints WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3",
			id, c.upTo, notesAtOnce); err != nil {
			return found, err
		}
		more = n == notesAtOnce
	}
	return found, nil
}
