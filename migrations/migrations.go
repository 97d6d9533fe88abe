// Package migrations holds the schema, as goose migrations that only go forward, and applies them.
//
// It decides who owns what: a role that owns the schema and cannot log in (taskpass_owner), and a role for the service
// (taskpass_service) that can neither delete nor alter an event. Each migration is safe while the version before it
// still serves.
package migrations

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
)

//go:embed *.sql
var files embed.FS

// The roles of a database. They belong to the whole PostgreSQL cluster, so two installations on one share them.
const (
	OwnerRole   = "taskpass_owner"
	ServiceRole = "taskpass_service"
	AuditorRole = "taskpass_auditor" // reads the record and its tree, and nothing else
)

// Login is an account to connect as: a member of one role. An empty Name makes none.
type Login struct {
	Name     string
	Password broker.Secret // empty: none, for servers that authenticate by other means
	Role     string        // empty: ServiceRole
}

// Up brings the database at url to this build's schema: roles first, then each migration as OwnerRole. The connection
// must have a session of its own (see postgres.Config), by a role that may create roles. Any number of processes may
// run it at once; one does the work.
func Up(ctx context.Context, url string, logins ...Login) error {
	return UpFrom(ctx, postgres.Config{URL: broker.NewSecret(url)}, logins...)
}

// UpFrom is Up for a URL of which errors say where it came from. Only URL and From are read.
func UpFrom(ctx context.Context, from postgres.Config, logins ...Login) error {
	for _, l := range logins {
		if err := checkPassword(l.Password); err != nil {
			return fmt.Errorf("the password of %s: %w", l.Name, err)
		}
	}
	cfg := postgres.Config{URL: from.URL, From: from.From, Name: "taskpass migrate", Statement: postgres.Unlimited}
	if err := roles(ctx, cfg, logins); err != nil {
		return fmt.Errorf("setting up roles: %w", err)
	}
	cfg.Role = OwnerRole
	db, err := postgres.OpenDB(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // every second, for 5 min
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker))
	if err != nil {
		return err
	}
	if _, err = provider.Up(ctx); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	_, err = db.ExecContext(ctx, "GRANT SELECT ON goose_db_version TO "+ServiceRole+", "+AuditorRole)
	if racing(err) {
		return nil
	}
	return err
}

// Latest is the version that this build's code expects of the schema.
func Latest() (int64, error) {
	provider, err := goose.NewProvider(goose.DialectPostgres, &sql.DB{}, files)
	if err != nil {
		return 0, err
	}
	sources := provider.ListSources()
	return sources[len(sources)-1].Version, nil
}

// roles makes what is missing, and lets OwnerRole create in the database.
func roles(ctx context.Context, cfg postgres.Config, logins []Login) error {
	conn, err := postgres.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, role := range []string{OwnerRole, ServiceRole, AuditorRole} {
		if err := create(ctx, conn, "CREATE ROLE "+role+" NOLOGIN"); err != nil {
			return err
		}
	}
	statements := []string{
		"GRANT " + OwnerRole + " TO CURRENT_USER",
		"GRANT CREATE, USAGE ON SCHEMA public TO " + OwnerRole,
		"REVOKE CREATE ON SCHEMA public FROM PUBLIC", // as PostgreSQL 15 has it from the start
	}
	for _, login := range logins {
		if login.Name == "" {
			continue
		}
		name := pgx.Identifier{login.Name}.Sanitize()
		if err := create(ctx, conn, "CREATE ROLE "+name+" LOGIN"); err != nil {
			return err
		}
		statements = append(statements, "GRANT "+cmp.Or(login.Role, ServiceRole)+" TO "+name)
		if !login.Password.Empty() {
			statement, err := alterPassword(name, login.Password)
			if err != nil {
				return err
			}
			statements = append(statements, statement)
		}
	}
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil && !racing(err) {
			return err
		}
	}
	return nil
}

// create runs a CREATE ROLE; that the role exists already is fine.
func create(ctx context.Context, conn *pgx.Conn, statement string) error {
	_, err := conn.Exec(ctx, statement)
	if racing(err) {
		return nil
	}
	return err
}

// racing tells whether another process did the same at the same moment: duplicate_object, unique_violation, or
// "tuple concurrently updated" (internal_error) from two GRANTs of the same thing.
func racing(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "42710" || pg.Code == "23505" || pg.Code == "XX000")
}
