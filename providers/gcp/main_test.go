package gcp_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const login = "taskpass_gcp_test"

// ledgerURL is the one database of all tests here: the template itself, for no test copies it. Each has accounts of its
// own.
var ledgerURL broker.Secret

func TestMain(m *testing.M) {
	code := pgtest.Main(m, func(ctx context.Context, adminURL string) error {
		u, err := url.Parse(adminURL)
		if err != nil {
			return err
		}
		password, given := u.User.Password()
		if u.User = url.User(login); given {
			u.User = url.UserPassword(login, password)
		}
		ledgerURL = broker.NewSecret(u.String())
		return migrations.Up(ctx, adminURL, migrations.Login{Name: login})
	})
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
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
