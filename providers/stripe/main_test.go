package stripe_test

import (
	"context"
	"os"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const login = "taskpass_stripe_test"

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
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
