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

// The guards that these migrations make, a line each: an object, a tab, a guard. A test holds this file to what a migrated
// database has, and writes it anew with TASKPASS_UPDATE=1.
//
//go:embed guards/expected.txt
var expectedGuards string

//go:embed guards/live.sql
var liveGuards string

// Beginner is a connection or a pool.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Changed lists what guards the ledger and the record in a database otherwise than the migrations make it: owners, columns,
// constraints, triggers, rules, functions, rights, and what the service's and the auditors' logins can become. Any login may
// ask. It says nothing of what was changed and put back. What an operator may do is left out: further roles that read, and
// further members of OwnerRole.
func Changed(ctx context.Context, db Beginner) ([]string, error) {
	latest, err := Latest()
	if err != nil {
		return nil, err
	}
	want := map[string][]string{}
	for line := range strings.Lines(expectedGuards) {
		object, guard, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		want[object] = append(want[object], guard)
	}
	var at int64
	var live []liveGuard
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		// Names are written in full whatever the path is, and JIT takes longer than the query.
		if _, err := tx.Exec(ctx, "SELECT set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true)"); err != nil {
			return err
		}
		if live, err = readGuards(ctx, tx, slices.Collect(maps.Keys(want))); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT max(version_id) FROM public.goose_db_version WHERE is_applied").Scan(&at)
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" {
		return nil, errors.New("this login may not read which migrations were applied: run `taskpass migrate` of this build")
	}
	if err != nil {
		return nil, err
	}
	if at != latest {
		return []string{fmt.Sprintf("the schema has version %d and this build knows version %d, so its guards cannot be compared: "+
			"use the build that migrated it", at, latest)}, nil
	}
	return compare(want, live), nil
}

// liveGuard is a guard of an object, which must have the guards of the object that it is like.
type liveGuard struct{ Object, Like, Guard string }

func readGuards(ctx context.Context, tx pgx.Tx, objects []string) ([]liveGuard, error) {
	rows, err := tx.Query(ctx, liveGuards, objects)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[liveGuard])
}

func compare(want map[string][]string, live []liveGuard) (changed []string) {
	have, like := map[string][]string{}, map[string]string{}
	for object := range want {
		like[object] = object
	}
	for _, g := range live {
		have[g.Object], like[g.Object] = append(have[g.Object], g.Guard), g.Like
	}
	for _, object := range slices.Sorted(maps.Keys(like)) {
		if len(have[object]) == 0 {
			changed = append(changed, object+" is missing")
			continue
		}
		for _, guard := range want[like[object]] {
			if !slices.Contains(have[object], guard) {
				changed = append(changed, fmt.Sprintf("%s: missing: %s", object, guard))
			}
		}
		for _, guard := range have[object] {
			if !slices.Contains(want[like[object]], guard) {
				changed = append(changed, fmt.Sprintf("%s: not of the migrations: %s", object, guard))
			}
		}
	}
	return changed
}
