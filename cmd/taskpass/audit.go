package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/migrations"
)

type auditCmd struct {
	Key        auditKeyCmd        `cmd:"" help:"Make a key that signs checkpoints. The public one is printed: give it to the auditors."`
	Public     auditPublicCmd     `cmd:"" help:"Print the public half of a signing key."`
	Checkpoint auditCheckpointCmd `cmd:"" help:"Print the newest signed checkpoint in the database."`
	Export     auditExportCmd     `cmd:"" help:"Write the record, with what proves it, as NDJSON."`
	Verify     auditVerifyCmd     `cmd:"" help:"Tell whether the record is the one that was signed, from an export or in the database. Exit 0 only if it is."`
	Trace      auditTraceCmd      `cmd:"" help:"Tell whose an upstream name or a secret is, what became of it, and how that is known."`
	Archive    auditArchiveCmd    `cmd:"" help:"Move old months out of the database: export, verify, detach. Months whose partitions were not made in time get them first. Run by the owner of the schema."`
}

type auditKeyCmd struct {
	Name string `arg:"" help:"Of the log, such as taskpass.example/log."`
	File string `arg:"" type:"path" help:"The private key's file; it must not exist."`
}

func (c *auditKeyCmd) Run(e *env) error {
	public, err := writeAuditKey(c.Name, c.File)
	if err == nil {
		_, err = fmt.Fprintln(e.stdout, public)
	}
	return err
}

type auditPublicCmd struct {
	File string `arg:"" type:"existingfile" help:"The private key's file."`
}

func (c *auditPublicCmd) Run(e *env) error {
	private, err := broker.Ref("file:" + c.File).Resolve()
	if err != nil {
		return err
	}
	public, err := tree.Public(private)
	if err == nil {
		_, err = fmt.Fprintln(e.stdout, public)
	}
	return err
}

// writeAuditKey makes a signing key in a file that only this user can read, and returns the public key.
func writeAuditKey(name, path string) (public string, err error) {
	private, public, err := tree.NewKey(name)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(private.Reveal() + "\n")
	return public, errors.Join(err, f.Sync(), f.Close())
}

// trusted are the public keys that an auditor knows.
type trusted struct {
	Key []string `required:"" help:"A public key, or a file of them, one a line. After a rotation, give the old ones too."`
}

func (t trusted) keys() (*tree.Keys, error) {
	var all string
	for _, k := range t.Key {
		if text, err := os.ReadFile(k); err == nil {
			k = string(text)
		}
		all += k + "\n"
	}
	return tree.ParseKeys(all)
}

// open connects to the database with some role's rights; "" is the login's own.
func (d database) open(ctx context.Context, role string) (*pgxpool.Pool, error) {
	url, from, err := d.url()
	if err != nil {
		return nil, err
	}
	cfg := postgres.Config{URL: url, From: from, Name: "taskpass audit", Role: role, MaxConns: 2, Statement: postgres.Unlimited}
	if role == "" {
		cfg.ReadOnly, cfg.Statement = true, 5*time.Minute // it reads in pieces
	}
	return postgres.Open(ctx, cfg)
}

type auditCheckpointCmd struct {
	database
	trusted
}

func (c *auditCheckpointCmd) Run(e *env) error {
	return withLog(e.ctx, c.database, c.trusted, func(l *sequence.Log) error {
		newest, err := l.Checkpoint(e.ctx)
		if err == nil {
			_, err = io.WriteString(e.stdout, newest.Note)
		}
		return err
	})
}

func withLog(ctx context.Context, d database, t trusted, fn func(*sequence.Log) error) error {
	keys, err := t.keys()
	if err != nil {
		return err
	}
	pool, err := d.open(ctx, "")
	if err != nil {
		return err
	}
	defer pool.Close()
	return fn(sequence.NewLog(pool, keys))
}

type auditExportCmd struct {
	database
	trusted
	Out  string `required:"" type:"path" help:"The file; it must not exist. It holds who was given what: guard it."`
	From int64  `help:"The first event's number."`
	To   int64  `help:"The number after the last one's; the newest checkpoint's by default."`
}

func (c *auditExportCmd) Run(e *env) error {
	return withLog(e.ctx, c.database, c.trusted, func(l *sequence.Log) error {
		h, lines, err := l.Export(e.ctx, c.From, c.To)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(c.Out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = tree.Write(f, h, lines)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.stdout, "events %d to %d of %d\n", h.From, h.To-1, h.Size)
		return err
	})
}

type auditArchiveCmd struct {
	database
	trusted
	Before     time.Time `required:"" format:"2006-01" placeholder:"YYYY-MM" help:"Every month before this one is moved. This month at the latest."`
	Out        string    `required:"" type:"existingdir" help:"A directory for the files."`
	Checkpoint []string  `type:"existingfile" help:"Published checkpoints: the files are held against them too."`
}

func (c *auditArchiveCmd) Run(e *env) error {
	keys, err := c.keys()
	if err != nil {
		return err
	}
	published, err := readNotes(keys, c.Checkpoint, e.stderr)
	if err != nil {
		return err
	}
	var brought []tree.Checkpoint
	for _, n := range published {
		brought = append(brought, n.Kept...)
	}
	pool, err := c.open(e.ctx, migrations.OwnerRole)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := pool.Ping(e.ctx); err != nil {
		return err
	}
	settled, unsettled := sequence.Settle(e.ctx, pool)
	for _, m := range settled {
		_, _ = fmt.Fprintf(e.stdout, "%s: %d events moved into a partition of their own, which was not made in time\n", m.Month, m.Events)
	}
	done, err := sequence.Archive(e.ctx, pool, keys, c.Before, c.Out, brought)
	for _, a := range done {
		if a.File == "" {
			_, _ = fmt.Fprintf(e.stdout, "%s: nothing in it; detached\n", a.Month)
			continue
		}
		_, _ = fmt.Fprintf(e.stdout, "%s: %d events in %s, verified against %d checkpoints; detached\n", a.Month, a.Events, a.File, len(a.Report.Signed))
	}
	return errors.Join(unsettled, err)
}
