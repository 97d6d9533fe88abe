package audit_test

import (
	"context"
	"os"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

// login is the service's account in the tests' databases.
const login = "taskpass_test"

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(pgtest.New(t).URL(login))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}
