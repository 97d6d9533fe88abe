// Command taskpass is the broker and its tools in one binary. This package wires the parts together and holds none of
// their rules.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
)

// cli is the command line: one field a command.
type cli struct {
	Demo        demoCmd        `cmd:"" help:"Play the whole story once against sandboxed vendors, with a private PostgreSQL."`
	Dev         devCmd         `cmd:"" help:"Run a broker to develop against: private PostgreSQL, sandboxed vendors, ready-made tokens."`
	Serve       serveCmd       `cmd:"" help:"Run the broker in production."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the database to this build's schema, and set up its roles."`
	Token       tokenCmd       `cmd:"" help:"Make, list and revoke callers' tokens."`
	Pool        poolCmd        `cmd:"" help:"Manage the keys of a running broker's pools."`
	Audit       auditCmd       `cmd:"" help:"Sign, export, verify and archive the audit record."`
	Keyset      keysetCmd      `cmd:"" help:"Make a keyset that seals secrets at rest."`
	CheckConfig checkConfigCmd `cmd:"" help:"Tell all that is wrong with a configuration file."`
	Healthcheck healthcheckCmd `cmd:"" help:"Exit 0 if a broker is ready."`
	Promises    promisesCmd    `cmd:"" help:"Print what each provider promises, as a table."`
}

// env is what commands may touch of the outside.
type env struct {
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	collectLessOften()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// collectLessOften lets the heap grow to five times what is alive before it is collected, unless GOGC says otherwise. What
// is alive is some 20 MB whatever the load, so this costs 80 MB of memory, and spares a seventh of the CPU of an issuance.
func collectLessOften() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}

// untilTold are the commands whose natural end is to be told to end. Any other that is cut off has failed: that `audit
// verify` was interrupted must not read as "verified".
var untilTold = []string{"serve", "dev", "demo"}

// run is the program without the process, for tests.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	type exit int
	defer func() {
		switch e := recover().(type) {
		case nil:
		case exit: // --help and --version end here
			code = int(e)
		default:
			panic(e)
		}
	}()
	parser, err := kong.New(&cli{}, kong.Name("taskpass"), kong.Writers(stdout, stderr),
		kong.Exit(func(c int) { panic(exit(c)) }), kong.UsageOnError(),
		kong.Description("A scoped token broker: one task, one credential, one end, all on record."))
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "taskpass:", err)
		return 2
	}
	command, err := parser.Parse(args)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "taskpass:", audit.Visible(postgres.Masked(err.Error())))
		return 2
	}
	err = command.Run(&env{ctx, stdin, stdout, stderr})
	if errors.Is(err, context.Canceled) && slices.Contains(untilTold, command.Command()) {
		err = nil
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "taskpass:", audit.Visible(postgres.Masked(postgres.Safe(err).Error())))
		if e, ok := errors.AsType[*broker.Error](err); ok {
			for _, f := range e.Faults {
				_, _ = fmt.Fprintln(stderr, "  "+f.Pointer, f.Reason)
			}
		}
		return 1
	}
	return 0
}

// safeAttr keeps the driver's words about connections out of the log: they repeat parts of the database's URL.
func safeAttr(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.AnyValue(postgres.Safe(err))
	}
	return a
}

func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // the configuration was checked; an empty level is info
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l, ReplaceAttr: safeAttr}))
}
