package sequence

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
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

// storedCheckpoint is a row of tree_checkpoints.
type storedCheckpoint struct {
	ID, Size int64
	At       time.Time
	Note     string

	signed tree.Checkpoint
	err    error // of opening it
}

// altered names the stored checkpoints that are not as this log signed them. Each signature is verified. What another log
// signed before this one's first or after its last stays unnamed: a tree goes on under another name once a database was
// restored, and that name's key is not here.
func (c checkpoints) altered() (tree.Report, error) {
	var found, others tree.Report // others: maybe of a log that came after this one
	ours := false                 // one of this log was there before
	judge := func(s *storedCheckpoint) {
		f := tree.Fault{What: tree.Unsigned, Index: s.Size - 1}
		switch origin := tree.OriginOf([]byte(s.Note)); {
		case s.err == nil && s.signed.Size == s.Size && s.signed.At.Equal(s.At):
			found.Join(others.Faults...)
			found.More += others.More
			ours, others = true, tree.Report{}
			return
		case s.err == nil:
			f.Detail = "a checkpoint is stored with another size or time than was signed"
		case origin == "" || origin == c.l.keys.Origin():
			f.Detail = "no known key has signed what is stored as a checkpoint for so many events"
		case ours:
			f.Detail = "what is stored as a checkpoint for so many events is not of this log, and stands between those that are"
			others.Join(f)
			return
		default:
			return
		}
		found.Join(f)
	}
	for id, more := int64(0), true; more; {
		page, err := collectInOrder(c.ctx, c.l.pool, pgx.RowToStructByPos[storedCheckpoint],
			"SELECT id, size, "+finiteAt+", note FROM tree_checkpoints WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3", id, c.upTo, notesAtOnce)
		if err != nil {
			return found, err
		}
		c.open(page)
		for i := range page {
			judge(&page[i])
			id = page[i].ID
		}
		more = len(page) == notesAtOnce
	}
	return found, nil
}

// open verifies signatures on all processors, for each takes some 60 microseconds.
func (c checkpoints) open(page []storedCheckpoint) {
	var wg broker.Group
	for part := range slices.Chunk(page, max(len(page)/runtime.GOMAXPROCS(0), 64)) {
		wg.Go(func() {
			for i := range part {
				part[i].signed, part[i].err = c.l.keys.Open([]byte(part[i].Note))
			}
		})
	}
	wg.Wait()
}
