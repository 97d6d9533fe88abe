package console_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/migrations"
)

// login is the service's account in the tests' databases.
const login = "taskpass_test"

func TestMain(m *testing.M) {
	code := pgtest.Main(m, func(ctx context.Context, adminURL string) error {
		u, err := url.Parse(adminURL)
		if err != nil {
			return err
		}
		password, _ := u.User.Password()
		return migrations.Up(ctx, adminURL, migrations.Login{Name: login, Password: broker.NewSecret(password)})
	})
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
