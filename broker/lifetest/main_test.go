// Package lifetest attacks the life of a credential from outside: over HTTP, on two replicas of the house that share one
// database, against a vendor at the wire that can be slow, refuse, or lose its answer.
package lifetest

import (
	"context"
	"os"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/migrations"
)

// login is the service's account in the tests' databases.
const login = "taskpass_test"

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
}
