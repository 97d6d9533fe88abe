package pool_test

import (
	"context"
	"os"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const login = "taskpass_pool_test"

// ledgerURL is the one database of all tests here: the template itself, for no test copies it. Each has pools and keys of
// its own.
var ledgerURL string

// sealer seals what is handed in, in all tests here.
var sealer = func() broker.Sealer {
	keyset, err := seal.NewKeyset()
	if err != nil {
		panic(err)
	}
	s, err := seal.New(keyset)
	if err != nil {
		panic(err)
	}
	return s
}()

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		ledgerURL = db.URL(login)
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
}

// replicas are stores of the one database, one a replica.
func replicas(t testing.TB, n int) []*store.Store {
	t.Helper()
	stores := make([]*store.Store, n)
	for i := range stores {
		stores[i] = openStore(t, ledgerURL)
	}
	return stores
}

func openStore(t testing.TB, at string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(at), MaxConns: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}
