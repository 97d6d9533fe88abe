package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

// database says where the database is. A URL with a password belongs into a file or the environment: arguments are seen
// by everybody on the machine.
type database struct {
	DatabaseURL     string `env:"TASKPASS_DATABASE_URL" help:"postgres://… of the database."`
	DatabaseURLFile string `type:"path" help:"A file that holds it."`
}

// urlAsFile is a URL that was made an absolute path.
var urlAsFile = regexp.MustCompile(`(?i)(^|/)postgres(ql)?:/`)

// url is the URL, and what errors call it.
func (d database) url() (url broker.Secret, from string, err error) {
	switch {
	case urlAsFile.MatchString(d.DatabaseURLFile):
		return url, "", errors.New("--database-url-file: want a file's name, and got a database URL: write it into a file, or use TASKPASS_DATABASE_URL")
	case d.DatabaseURLFile != "":
		url, err = broker.Ref("file:" + d.DatabaseURLFile).Resolve()
		return url, d.DatabaseURLFile, err
	case d.DatabaseURL != "":
		return broker.NewSecret(d.DatabaseURL), "--database-url or TASKPASS_DATABASE_URL", nil
	}
	return broker.Secret{}, "", errors.New("say which database: --database-url-file, --database-url or TASKPASS_DATABASE_URL")
}

type migrateCmd struct {
	database
	ServiceLogin        string `help:"Also make this login for the service, with the rights that it needs and no more."`
	ServicePasswordFile string `type:"path" help:"A file that holds its password."`
	AuditorLogin        string `help:"Also make this login for auditors, who read the record and its tree and nothing else."`
	AuditorPasswordFile string `type:"path" help:"A file that holds its password."`
}

func (c *migrateCmd) Run(e *env) error {
	url, from, err := c.url()
	if err != nil {
		return err
	}
	service, err1 := login(c.ServiceLogin, c.ServicePasswordFile, migrations.ServiceRole)
	auditor, err2 := login(c.AuditorLogin, c.AuditorPasswordFile, migrations.AuditorRole)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if c.AuditorLogin != "" && c.AuditorLogin == c.ServiceLogin {
		return errors.New("the auditors' login may not be the service's: it would write the record that they verify")
	}
	if err := migrations.UpFrom(e.ctx, postgres.Config{URL: url, From: from}, service, auditor); err != nil {
		return err
	}
	version, err := migrations.Latest()
	if err == nil {
		_, err = fmt.Fprintf(e.stdout, "The schema is at version %d.\n", version)
	}
	return err
}

func login(name, passwordFile, role string) (l migrations.Login, err error) {
	l = migrations.Login{Name: name, Role: role}
	if passwordFile != "" {
		l.Password, err = broker.Ref("file:" + passwordFile).Resolve()
	}
	return l, err
}

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a token; it is printed this once."`
	List   tokenListCmd   `cmd:"" help:"List tokens, never their values."`
	Revoke tokenRevokeCmd `cmd:"" help:"End a token for good."`
}

type tokenCreateCmd struct {
	database
	Role broker.Role   `required:"" enum:"orchestrator,auditor,operator" help:"${enum}."`
	Name string        `required:"" help:"The caller's name, as the audit record will show it. One caller may have several tokens."`
	TTL  time.Duration `name:"ttl" default:"2160h" help:"How long it is good for: ${default} by default, 9600h at most."`
}

func (c *tokenCreateCmd) Run(e *env) error {
	return withTokens(e.ctx, c.database, func(callers *auth.Authenticator, _ *store.Store) error {
		secret, t, err := callers.Create(e.ctx, operatorHere(), c.Name, c.Role, c.TTL)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(e.stderr, "%s for %s (%s), good until %s. It is shown this once:\n", t.ID, t.Caller, t.Role,
			t.ExpiresAt.Format(time.RFC3339))
		_, err = fmt.Fprintln(e.stdout, secret.Reveal())
		return err
	})
}

type tokenListCmd struct{ database }

func (c *tokenListCmd) Run(e *env) error {
	return withTokens(e.ctx, c.database, func(_ *auth.Authenticator, s *store.Store) error {
		tokens, err := s.Tokens(e.ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "ID\tCALLER\tROLE\tEXPIRES\tREVOKED")
		for _, t := range tokens {
			revoked := "-"
			if !t.RevokedAt.IsZero() {
				revoked = t.RevokedAt.Format(time.RFC3339)
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Caller, t.Role, t.ExpiresAt.Format(time.RFC3339), revoked)
		}
		return w.Flush()
	})
}

type tokenRevokeCmd struct {
	database
	ID string `arg:"" help:"tok_…, from list."`
}

func (c *tokenRevokeCmd) Run(e *env) error {
	return withTokens(e.ctx, c.database, func(callers *auth.Authenticator, _ *store.Store) error {
		return callers.Revoke(e.ctx, operatorHere(), c.ID)
	})
}

func withTokens(ctx context.Context, d database, fn func(*auth.Authenticator, *store.Store) error) error {
	url, from, err := d.url()
	if err != nil {
		return err
	}
	callers, s, err := openTokens(ctx, store.Config{URL: url, From: from, MaxConns: 2})
	if err != nil {
		return err
	}
	defer s.Close()
	return fn(callers, s)
}

// openTokens opens the tokens of a database. Their ends, and the events, are by its clock, as in serve: this machine's may
// be another.
func openTokens(ctx context.Context, cfg store.Config) (*auth.Authenticator, *store.Store, error) {
	s, err := store.Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	if err := s.MeasureClock(ctx); err != nil {
		s.Close()
		return nil, nil, err
	}
	return auth.New(s, s.Now), s, nil
}

// operatorHere is who runs a command on this machine, for the record.
func operatorHere() broker.Caller {
	name := "cli"
	if u, err := user.Current(); err == nil && broker.ValidID("cli:"+u.Username) {
		name = "cli:" + u.Username
	}
	return broker.Caller{Name: name, Role: broker.RoleOperator, Auth: "database"}
}

type keysetCmd struct {
	Create keysetCreateCmd `cmd:"" help:"Write a new keyset to a file that only you can read."`
}

type keysetCreateCmd struct {
	File string `arg:"" type:"path" help:"The file; it must not exist."`
}

func (c *keysetCreateCmd) Run(*env) error { return writeKeyset(c.File) }

func writeKeyset(path string) error {
	keyset, err := seal.NewKeyset()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(keyset.Reveal() + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

type healthcheckCmd struct {
	URL string `default:"http://127.0.0.1:8080/readyz" help:"What to ask."`
}

func (c *healthcheckCmd) Run(e *env) error {
	ctx, cancel := context.WithTimeout(e.ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{}).Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", c.URL, strings.ToLower(response.Status))
	}
	return nil
}
