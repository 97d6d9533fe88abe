// Package crashtest kills real `taskpass serve` processes, cuts the wires between them, PostgreSQL and the upstream, and
// holds two transactions against each other where they must not meet. Then a checker reads the database and the
// upstream's own state and says which promise (P1-P5, P8) was broken. It decides nothing about how the broker works: it
// knows the HTTP contract, the tables and the state diagram.
package crashtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/migrations"
)

// login is the service's account in the tests' databases.
const login = "taskpass_crash"

// binary is taskpass, built once with the tag killpoints.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "taskpass-crash-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "taskpass")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-tags", "killpoints", "-o", binary, "..").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building taskpass: %v\n%s", err, out)
		return 1
	}
	return pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	})
}
