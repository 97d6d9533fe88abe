package sequence

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// stored holds the rows of the tree against each other that the walk through the record does not come to: the leaves that
// no checkpoint has yet, and all of the tiles. A broker goes on from them, and refuses over one that is wrong.
type stored struct {
	l      *Log
	ctx    context.Context
	times  *times
	report *tree.Report
	end    int64 // leaves that follow each other from the first on
	// Of each level, what the tiles of one tile above it come to: by its data, and by the root beside it. Where the two
	// contradict each other that tile is named, and not the one above too.
	below [8]map[int64][2][]byte
}

// rest looks at what is stored beyond what a checkpoint of that size was held against, and at the tiles. leaves is how
// many there are, by the number of the last; what grows meanwhile is not looked at.
func (l *Log) rest(ctx context.Context, size, leaves int64, times *times, report *tree.Report) error {
	s := &stored{l: l, ctx: ctx, times: times, report: report, end: leaves}
	if err := s.gaps(size); err != nil {
		return err
	}
	if err := s.tail(size); err != nil {
		return err
	}
	for block := int64(0); block*tree.Width*tree.Width < s.end; block++ {
		if err := s.tiles(block); err != nil {
			return err
		}
	}
	return s.surplus()
}

// bad names a row of the tree.
func (s *stored) bad(f tree.Fault) {
	f.What = tree.BadTree
	s.report.Join(f)
}

// gaps names the leaves that do not follow the one before them.
func (s *stored) gaps(size int64) error {
	var f tree.Fault
	var from int64
	return readInOrder(s.ctx, s.l.pool, func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&f.Index, &f.EventID, &from}, func() error {
			s.end = min(s.end, from)
			f.Detail = fmt.Sprintf("its leaf follows none: the one before it would be %d, and from %d on there is none", f.Index-1, from)
			s.bad(f)
			return nil
		})
		return err
	}, `SELECT idx, event_id, before + 1
		FROM (SELECT idx, event_id, lag(idx, 1, $1 - 1) OVER (ORDER BY idx) AS before FROM tree_leaves WHERE idx >= $1) l
		WHERE idx > before + 1 ORDER BY idx`, size)
}

// tail holds the leaves from size on against their events. It begins with the tile that the checkpoint ends in.
func (s *stored) tail(size int64) error {
	if size == s.end {
		return nil
	}
	h := tree.Header{Origin: s.l.keys.Origin(), From: size / tree.Width * tree.Width, To: s.end, Size: s.end}
	h.Left = make([]tlog.Hash, len(tree.Nodes(0, h.From))) // of any value: nothing is signed that these would come to
	w := walk{l: s.l, ctx: s.ctx, from: h.From, to: h.To, times: s.times}
	report, err := tree.Verify(h, w.all, nil)
	for _, f := range report.Faults {
		if f.What == tree.Removed { // who can add a leaf can make one up
			f.What, f.Detail = tree.BadTree, "no checkpoint has this leaf yet, and there is no event that it is of"
		}
		if max(f.Index+1, f.To) > size {
			s.report.Join(f)
		}
	}
	s.report.More += report.More
	return err
}

// tiles reads those that end in one block of as many leaves as a tile of level 1 has: 2 MB.
func (s *stored) tiles(block int64) error {
	want := s.whole(block)
	levels, ns := make([]int32, len(want)), make([]int64, len(want))
	for i, p := range want {
		levels[i], ns[i] = int32(p.level), p.n //nolint:gosec // below 8
	}
	rows, err := s.l.pool.Query(s.ctx, `SELECT t.data, t.root FROM unnest($1::int[], $2::bigint[]) WITH ORDINALITY AS w (level, n, i)
		LEFT JOIN tree_tiles t ON t.level = w.level AND t.n = w.n ORDER BY i`, levels, ns)
	if err != nil {
		return err
	}
	var data, root []byte
	_, err = pgx.ForEachRow(rows, []any{&data, &root}, func() error {
		s.tile(want[0], data, root)
		want = want[1:]
		return nil
	})
	return err
}

// whole is the tiles that end in a block, those below before those that are made of them.
func (s *stored) whole(block int64) (list []place) {
	for n := block * tree.Width; n < min((block+1)*tree.Width, s.end/tree.Width); n++ {
		list = append(list, place{0, n})
	}
	if len(list) < tree.Width {
		return list
	}
	level, n := 1, block
	for ; n%tree.Width == tree.Width-1; level, n = level+1, n/tree.Width {
		list = append(list, place{level, n})
	}
	return append(list, place{level, n})
}

// tile holds one against its root and against the tiles that it is made of. The leaves of the lowest were held against it
// by the walk.
func (s *stored) tile(p place, data, root []byte) {
	made := s.below[p.level]
	s.below[p.level] = nil
	from, to := p.leaves()
	bad := func(detail string) {
		s.bad(tree.Fault{Index: from, To: to, Detail: fmt.Sprintf("tile %d of level %d %s", p.n, p.level, detail)})
	}
	if len(data) != tree.Width*tlog.HashSize {
		bad("is not there, or not whole")
		return
	}
	come := rootOf(data)
	if s.below[p.level+1] == nil {
		s.below[p.level+1] = map[int64][2][]byte{}
	}
	s.below[p.level+1][p.n%tree.Width] = [2][]byte{come[:], root}
	if !bytes.Equal(come[:], root) {
		bad("does not come to the root that is stored with it")
		return
	}
	for i, roots := range made {
		if hash := data[i*tlog.HashSize:][:tlog.HashSize]; !bytes.Equal(hash, roots[0]) && !bytes.Equal(hash, roots[1]) {
			bad("is not made of those below it")
			return
		}
	}
}

// surplus names the tiles that no tree of so many leaves has. One statement sees the leaves and the tiles of one moment.
func (s *stored) surplus() error {
	rows, err := s.l.pool.Query(s.ctx, `SELECT level, n FROM tree_tiles, (SELECT `+leafCount+` AS size FROM tree_leaves) t
		WHERE NOT (level BETWEEN 0 AND 6 AND n >= 0 AND n < size >> (8 * (level + 1))) ORDER BY level, n`)
	if err != nil {
		return err
	}
	var p place
	_, err = pgx.ForEachRow(rows, []any{&p.level, &p.n}, func() error {
		from, to := p.leaves()
		s.bad(tree.Fault{Index: from, To: to, Detail: fmt.Sprintf("tile %d of level %d is stored, and the tree has no such leaves", p.n, p.level)})
		return nil
	})
	return err
}

// leafCount is how long the tree is by its last leaf. An owner may write the largest number there is.
const leafCount = "least(coalesce(max(idx), -1), 9223372036854775806) + 1"

// leaves is what a tile is over, as far as leaves can be counted.
func (p place) leaves() (from, to int64) {
	shift := tree.Height * (p.level + 1)
	if shift < 0 || shift > 62 || p.n < 0 || p.n >= math.MaxInt64>>shift {
		return math.MaxInt64 - 1, math.MaxInt64
	}
	return p.n << shift, (p.n + 1) << shift
}

// contradicted is what an event's columns say against its body, and its leaf's time if all else in the leaf is right.
func (l *storedLeaf) contradicted(e *storedEvent) map[string]string {
	differ := e.Contradicted(e.body)
	if _, redated := differ["at"]; redated || l.at.Equal(e.At) || l.id != e.ID || tlog.RecordHash(e.body) != l.hash {
		return differ
	}
	if differ == nil {
		differ = map[string]string{}
	}
	differ[tree.LeafTime] = l.at.UTC().Format(time.RFC3339Nano)
	return differ
}
