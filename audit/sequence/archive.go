package sequence

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/tree"
)

// Archived is one month that left the database.
type Archived struct {
	Month  string // "2006-01"
	File   string // empty: there was nothing in it
	Events int64  // of the month
	Report tree.Report
}

// partition is the name of a month's. What a wrong clock brings after the month was archived gets another one, of which
// the name has a number more, for the detached table may still be there.
var partition = regexp.MustCompile(`^events_(\d{4})_(\d{2})(?:_\d+)?$`)

// Archive moves the months before the given one, of which the day does not matter, out of the database, oldest first: it
// exports a month's partition into a file of dir, verifies that file from the disk, and only then detaches the partition.
// The detached table stays, for the owner to drop. The tree stays whole, for leaves and tiles are not touched. A month that
// fails keeps no other from leaving. owner must be able to alter the events: it is never the service's login. Checkpoints
// that were brought are held against the files too.
func Archive(ctx context.Context, owner *pgxpool.Pool, keys *tree.Keys, before time.Time, dir string, brought []tree.Checkpoint) ([]Archived, error) {
	end := before.Format("2006-01")
	names, err := partitions(ctx, owner, end)
	if err != nil {
		return nil, err
	}
	var done []Archived
	var errs []error
	for _, name := range names {
		parts := partition.FindStringSubmatch(name)
		if parts == nil || parts[1]+"-"+parts[2] >= end {
			continue
		}
		a := archive{log: NewLog(owner, keys), owner: owner, table: name, brought: brought, dir: dir}
		a.done.Month = parts[1] + "-" + parts[2]
		if err := a.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s stays where it is: %w", a.done.Month, err))
			if futile(ctx, err) {
				break
			}
			continue
		}
		done = append(done, a.done)
	}
	return done, errors.Join(errs...)
}

// partitions are the events', in the order of their names. Months after this one cannot be over: whoever asks for all
// before one of them has mistyped it.
func partitions(ctx context.Context, owner *pgxpool.Pool, end string) ([]string, error) {
	var current string
	if err := owner.QueryRow(ctx, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM')").Scan(&current); err != nil {
		return nil, err
	}
	if end > current {
		return nil, fmt.Errorf("what is before %s is not over: the last month to archive before is this one, %s", end, current)
	}
	rows, err := owner.Query(ctx, `SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'events'::regclass ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// futile says that no other month would fare better: the run was cut off, or somebody holds the record, and to wait for
// them again would hold up who writes again.
func futile(ctx context.Context, err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ctx.Err() != nil || ok && pg.Code == "55P03" // lock_not_available
}

type archive struct {
	log        *Log
	owner      *pgxpool.Pool
	table, dir string
	brought    []tree.Checkpoint

	done     Archived
	from, to int64
	last     position
	sum      [sha256.Size]byte
}

func (a *archive) run(ctx context.Context) error {
	there, err := a.bounds(ctx)
	if err != nil {
		return err
	}
	if there {
		if a.done.File, err = a.file(ctx); err != nil {
			return err
		}
		if err := a.export(ctx); err != nil {
			return err
		}
		if err := a.verify(); err != nil {
			return err
		}
	}
	return a.detach(ctx)
}

// file is where the month goes. Each time that some of it leaves it has another name, in whatever directory.
func (a *archive) file(ctx context.Context) (string, error) {
	var earlier int
	err := a.owner.QueryRow(ctx, "SELECT count(*) FROM tree_archives WHERE month = $1", a.done.Month).Scan(&earlier)
	name := "audit-" + a.done.Month
	if earlier > 0 {
		name += fmt.Sprintf("-%d", earlier+1)
	}
	return filepath.Join(a.dir, name+".ndjson"), err
}

// bounds finds the leaves from the month's first event to its last. Clocks run against the order a little, so events
// of the neighbours stand between; they are exported too.
func (a *archive) bounds(ctx context.Context) (there bool, err error) {
	for _, end := range []struct {
		order string
		idx   *int64
	}{{"ASC", &a.from}, {"DESC", &a.to}} {
		var id string
		err := a.owner.QueryRow(ctx, fmt.Sprintf("SELECT id, xid, seq FROM %s ORDER BY xid %s, seq %[2]s LIMIT 1", a.table, end.order)).
			Scan(&id, &a.last.xid, &a.last.seq)
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		err = a.owner.QueryRow(ctx, "SELECT idx FROM tree_leaves WHERE event_id = $1 AND xid = $2 AND seq = $3", id, a.last.xid, a.last.seq).
			Scan(end.idx)
		if errors.Is(err, pgx.ErrNoRows) {
			return false, fmt.Errorf("its event %s is not in the tree (yet)", id)
		}
		if err != nil {
			return false, err
		}
	}
	a.to++
	return true, nil
}

// export writes the file under another name and renames it when it is whole. It never writes over one that is there: what
// a run that was cut off has left is verified like one that was just written.
func (a *archive) export(ctx context.Context) error {
	if _, err := os.Lstat(a.done.File); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	h, lines, err := a.log.Export(ctx, a.from, a.to)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(a.dir, ".audit-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = tree.Write(file, h, lines)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), a.done.File); err != nil {
		return err
	}
	return syncDir(a.dir)
}

// syncDir makes the new name durable: the events leave the database next.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// count counts the month's own events on their way.
func (a *archive) count(lines iter.Seq2[tree.Line, error]) iter.Seq2[tree.Line, error] {
	return func(yield func(tree.Line, error) bool) {
		for line, err := range lines {
			var e struct {
				At string `json:"at"`
			}
			if line.Body != nil && json.Unmarshal(line.Body, &e) == nil && strings.HasPrefix(e.At, a.done.Month+"-") {
				a.done.Events++
			}
			if !yield(line, err) {
				return
			}
		}
	}
}

// verify reads the file from the disk, as an auditor would.
func (a *archive) verify() error {
	file, err := os.Open(a.done.File)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	h, lines, err := tree.Read(io.TeeReader(file, sum))
	if err != nil {
		return fmt.Errorf("%s: %w", a.done.File, err)
	}
	if h.From != a.from || h.To != a.to {
		return fmt.Errorf("%s has other events than this month's: move the file away and run it again", a.done.File)
	}
	newest, err := a.log.keys.Open([]byte(h.Checkpoint))
	if err != nil {
		return err
	}
	a.done.Report, err = tree.Verify(h, a.count(lines), append([]tree.Checkpoint{newest}, a.brought...))
	if err != nil {
		return err
	}
	if f, bad := a.done.Report.First(); bad {
		return fmt.Errorf("its export does not verify: %s", f)
	}
	if !a.done.Report.OK() {
		return errors.New("its export does not verify")
	}
	a.sum = [sha256.Size]byte(sum.Sum(nil))
	return nil
}

// detach takes the partition out of the record, in one transaction with the word that it did.
func (a *archive) detach(ctx context.Context) error {
	return pgx.BeginFunc(ctx, a.owner, func(tx pgx.Tx) error {
		// Whoever waits for this lock holds up who writes events: better to give up and be run again.
		for _, sql := range []string{"SET LOCAL lock_timeout = '3s'", "LOCK TABLE events, " + a.table + " IN ACCESS EXCLUSIVE MODE"} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		var events int64
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+a.table).Scan(&events); err != nil {
			return err
		}
		if events != a.done.Events {
			return fmt.Errorf("%d events are in the database, %d in the file: move the file away and run it again", events, a.done.Events)
		}
		if a.done.File != "" {
			if _, err := tx.Exec(ctx, `INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ($1, $2, $3, $4, $5, $6)`,
				a.done.Month, a.from, a.to, a.done.Events, a.done.Report.Header.Size, a.sum[:]); err != nil {
				return err
			}
		}
		if err := a.forgetTimes(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "ALTER TABLE events DETACH PARTITION "+a.table)
		return err
	})
}

// forgetTimes removes what was noted of the month alone: a search would look for events that are gone.
func (a *archive) forgetTimes(ctx context.Context, tx pgx.Tx) error {
	from, err := time.Parse("2006-01", a.done.Month)
	if err == nil {
		_, err = tx.Exec(ctx, "DELETE FROM event_stretches WHERE earliest >= $1 AND latest >= $1 AND earliest < $2 AND latest < $2", from, from.AddDate(0, 1, 0))
	}
	return err
}
