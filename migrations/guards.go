package migrations

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The guards that these migrations make, a line each: an object, a tab, a guard, a tab, and its definition in the words of
// PostgreSQL listedMajor, or nothing. A test compares this file with what a migrated database has, and writes it anew with
// TASKPASS_UPDATE=1.
//
//go:embed guards/expected.txt
var expectedGuards string

// listedMajor is the major version of PostgreSQL that expectedGuards was read from. Another one may word a definition
// differently, such as a constraint's expression.
const listedMajor = 15

//go:embed guards/live.sql
var liveGuards string

// parameterGuards lists who may set the parameter that turns triggers off. PostgreSQL 15 is the first that can grant it.
const parameterGuards = `SELECT who, who, format('may %s session_replication_role: triggers do not run', privilege_type), ''
	FROM pg_parameter_acl, aclexplode(paracl) LEFT JOIN pg_roles r ON r.oid = grantee,
		LATERAL (SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE 'role ' || rolname END AS who) w
	WHERE parname = 'session_replication_role' AND rolsuper IS NOT TRUE ORDER BY who`

// Beginner is a connection or a pool.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Guards is how the guards of a database compare with those that the migrations make.
type Guards struct {
	Changed []string // what differs
	// Unsure has the definitions whose words differ where the database is not of the major version that the list was read
	// from: each was changed, or is only worded differently there. Facts about the same guard are compared on every version.
	Unsure []string
}

// Compare compares the guards of the ledger and the record in a database with what the migrations make: owners, columns,
// constraints, triggers, rules, functions, rights, and what the service's and the auditors' logins can become. Any login may
// ask. It says nothing of what was changed and put back. What an operator may do is left out: further roles that read, and
// further members of OwnerRole.
func Compare(ctx context.Context, db Beginner) (Guards, error) {
	latest, err := Latest()
	if err != nil {
		return Guards{}, err
	}
	want := map[string][]guard{}
	for line := range strings.Lines(expectedGuards) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n")+"\t\t", "\t", 4)
		want[fields[0]] = append(want[fields[0]], guard{fields[1], fields[2]})
	}
	var version, at int64
	var live []liveGuard
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		// Names are written in full whatever the path is, and JIT takes longer than the query.
		if _, err := tx.Exec(ctx, "SELECT set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true)"); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "SELECT current_setting('server_version_num')::bigint").Scan(&version); err != nil {
			return err
		}
		if live, err = readGuards(ctx, tx, version, slices.Collect(maps.Keys(want))); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT max(version_id) FROM public.goose_db_version WHERE is_applied").Scan(&at)
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" {
		return Guards{}, errors.New("this login may not read which migrations were applied: run `taskpass migrate` of this build")
	}
	if err != nil {
		return Guards{}, err
	}
	if at != latest {
		return Guards{Changed: []string{fmt.Sprintf("the schema has version %d and this build knows version %d, so its guards cannot be compared: "+
			"use the build that migrated it", at, latest)}}, nil
	}
	return compare(want, live, version/10_000), nil
}

// guard is one guard of an object: what holds on every version of PostgreSQL, and its definition in one version's words.
type guard struct{ Fact, Words string }

func (g guard) String() string {
	if g.Words == "" {
		return g.Fact
	}
	return g.Fact + ": " + g.Words
}

// liveGuard is a guard of an object, which must have the guards of the object that it is like.
type liveGuard struct {
	Object, Like string
	guard
}

func readGuards(ctx context.Context, tx pgx.Tx, version int64, objects []string) (list []liveGuard, err error) {
	read := func(sql string, args ...any) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var g liveGuard
		_, err = pgx.ForEachRow(rows, []any{&g.Object, &g.Like, &g.Fact, &g.Words}, func() error {
			list = append(list, g)
			return nil
		})
		return err
	}
	if err := read(liveGuards, objects); err != nil {
		return nil, err
	}
	if version >= 150_000 {
		err = read(parameterGuards)
	}
	return list, err
}

func compare(want map[string][]guard, live []liveGuard, major int64) (g Guards) {
	have, like := map[string][]guard{}, map[string]string{}
	for object := range want {
		like[object] = object
	}
	for _, g := range live {
		have[g.Object], like[g.Object] = append(have[g.Object], g.guard), g.Like
	}
	for _, object := range slices.Sorted(maps.Keys(like)) {
		if len(have[object]) == 0 {
			g.Changed = append(g.Changed, object+" is missing")
			continue
		}
		g.object(object, want[like[object]], have[object], major)
	}
	return g
}

// object compares the guards of one object.
func (g *Guards) object(object string, want, have []guard, major int64) {
	for _, w := range want {
		if slices.Contains(have, w) {
			continue
		}
		i := slices.IndexFunc(have, func(h guard) bool { return h.Fact == w.Fact })
		if major == listedMajor || i < 0 {
			g.Changed = append(g.Changed, fmt.Sprintf("%s: missing: %s", object, w))
			continue
		}
		g.Unsure = append(g.Unsure, fmt.Sprintf("%s: %s: PostgreSQL %d has %q, and %d had %q: compare them yourself",
			object, w.Fact, major, have[i].Words, listedMajor, w.Words))
	}
	for _, h := range have {
		worded := major != listedMajor && slices.ContainsFunc(want, func(w guard) bool { return w.Fact == h.Fact })
		if !slices.Contains(want, h) && !worded {
			g.Changed = append(g.Changed, fmt.Sprintf("%s: not of the migrations: %s", object, h))
		}
	}
}
