package pgtest_test

import (
	"context"
	"os"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker/localpg/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		conn, err := pgx.Connect(ctx, db.AdminURL)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, "CREATE TABLE note (text text); INSERT INTO note VALUES ('from the template')")
		return err
	}))
}

// Each test sees the template and none of the other tests, however many run at once.
func TestDatabasesAreCopiesAndApart(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			conn, err := pgx.Connect(t.Context(), db.URL("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			// Left open on purpose: dropping the database must cope.
			if _, err := conn.Exec(t.Context(), "INSERT INTO note VALUES ('mine')"); err != nil {
				t.Fatal(err)
			}
			var rows int
			var name string
			if err := conn.QueryRow(t.Context(), "SELECT count(*), current_database() FROM note").Scan(&rows, &name); err != nil {
				t.Fatal(err)
			}
			if rows != 2 || name != db.Name {
				t.Errorf("%d rows in %q; want 2 in %q", rows, name, db.Name)
			}
		})
	}
}

func TestDatabaseIsDropped(t *testing.T) {
	t.Parallel()
	var name, adminURL string
	other := pgtest.New(t)
	t.Run("inner", func(t *testing.T) {
		db := pgtest.New(t)
		name, adminURL = db.Name, other.AdminURL
	})
	conn, err := pgx.Connect(t.Context(), adminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var exists bool
	if err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	if exists {
		t.Errorf("database %s outlived its test", name)
	}
}
