package stripe_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const login = "taskpass_stripe_test"

func TestMain(m *testing.M) {
	code := pgtest.Main(m, func(ctx context.Context, adminURL string) error {
		return migrations.Up(ctx, adminURL, migrations.Login{Name: login})
	})
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// replicas are stores of one database, one a replica. Each call has a database of its own: what is due in one is nobody
// else's.
func replicas(t testing.TB, n int) []*store.Store {
	t.Helper()
	db := pgtest.New(t)
	stores := make([]*store.Store, n)
	for i := range stores {
		s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(db.URL(login)), MaxConns: 6})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		stores[i] = s
	}
	return stores
}
