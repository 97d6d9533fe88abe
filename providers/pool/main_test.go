package pool_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"testing"

	"go.uber.org/goleak"

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
	code := pgtest.Main(m, func(ctx context.Context, adminURL string) error {
		u, err := url.Parse(adminURL)
		if err != nil {
			return err
		}
		password, given := u.User.Password()
		if u.User = url.User(login); given {
			u.User = url.UserPassword(login, password)
		}
		ledgerURL = u.String()
		return migrations.Up(ctx, adminURL, migrations.Login{Name: login})
	})
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
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
