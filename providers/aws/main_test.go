package aws_test

import (
	"context"
	"os"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const login = "taskpass_aws_test"

// ledgerURL is the one database of all tests here: the template itself, for no test copies it. Each has a role of its
// own, and a ledger's denials are by role.
var ledgerURL broker.Secret

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		ledgerURL = broker.NewSecret(db.URL(login))
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
}

// replicas are stores of the one database, one a replica.
func replicas(t *testing.T, n int) []*store.Store {
	t.Helper()
	stores := make([]*store.Store, n)
	for i := range stores {
		s, err := store.Open(t.Context(), store.Config{URL: ledgerURL, MaxConns: 6})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		stores[i] = s
	}
	return stores
}
