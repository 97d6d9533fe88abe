package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/upstreamlog"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

const insufficientPrivilege = "42501" // PostgreSQL's SQLSTATE

type auditTraceCmd struct {
	database
	URL        string    `name:"url" env:"TASKPASS_URL" help:"https://… of a broker: it is asked, and the question is on the record. Without it, the database."`
	Token      string    `env:"TASKPASS_TOKEN" help:"An auditor's token, for --url."`
	TokenFile  string    `type:"path" help:"A file that holds it."`
	Value      string    `arg:"" optional:"" help:"An access key id, AROA…:session, a session's ARN or name, a service account, a key's id, POOL/KEY, a credential's crd_…, or sha256:… of a secret."`
	At         time.Time `help:"When it was used (RFC 3339): for a name that many had one after the other."`
	Cloudtrail string    `type:"existingfile" help:"CloudTrail records as delivered, what lookup-events prints, or in an envelope of AWS: each is joined to its task."`
	CloudAudit string    `type:"existingfile" help:"Google's Cloud Audit Logs, {\"entries\":[…]}, a list, or one entry a line, gzipped or not: each is joined to its task."`
	Stripe     string    `type:"existingfile" help:"Lines of Stripe's request log, one JSON object each: each is joined to its task."`
}

func (c *auditTraceCmd) Run(e *env) error {
	given := 0
	for _, v := range []string{c.Value, c.Cloudtrail, c.CloudAudit, c.Stripe} {
		if v != "" {
			given++
		}
	}
	if given != 1 {
		return errors.New("give one of: a value, --cloudtrail FILE, --cloud-audit FILE, --stripe FILE")
	}
	trace, done, err := c.tracer(e.ctx)
	if err != nil {
		return err
	}
	defer done()
	switch {
	case c.Cloudtrail != "":
		return joinFile(e, c.Cloudtrail, upstreamlog.CloudTrail, trace)
	case c.CloudAudit != "":
		return joinFile(e, c.CloudAudit, upstreamlog.CloudAudit, trace)
	case c.Stripe != "":
		return joinFile(e, c.Stripe, upstreamlog.Stripe, trace)
	}
	q, err := audit.TraceOf(c.Value)
	if err != nil {
		return fmt.Errorf("the value %w", err)
	}
	if sum := upstreamlog.Secret(c.Value); sum != nil {
		_, _ = fmt.Fprintln(e.stderr, "That is a secret by its form: it is looked for by its SHA-256, and is sent nowhere.")
		q.Name, q.Fingerprint = "", sum
	}
	q.At = c.At
	t, err := trace(e.ctx, q)
	if err != nil {
		return err
	}
	if len(t.Held) == 0 && t.AtOtherTimes {
		return errors.New("nobody here had it then; at other times somebody did: leave out --at")
	}
	if len(t.Held) == 0 && t.ArchivedBefore != "" {
		return fmt.Errorf("unknown here in what is not archived: events of months before %s are in files", t.ArchivedBefore)
	}
	if len(t.Held) == 0 {
		return errors.New("unknown here: nothing of that name is on the record")
	}
	for _, h := range t.Held {
		printHeld(e.stdout, h)
	}
	if t.More {
		_, _ = fmt.Fprintln(e.stdout, "Others had it before these: say when it was used, by --at.")
	}
	return nil
}

func joinFile(e *env, name string, read func(io.Reader) iter.Seq2[upstreamlog.Line, error], trace tracer) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return join(e, read(f), trace)
}

// tracer asks whose something is.
type tracer func(context.Context, audit.TraceQuery) (audit.Traced, error)

// tracer asks a broker, or the database itself.
func (c *auditTraceCmd) tracer(ctx context.Context) (t tracer, done func(), err error) {
	if c.URL == "" {
		pool, err := c.open(ctx, "")
		if err != nil {
			return nil, nil, err
		}
		log := audit.NewLog(pool)
		return func(ctx context.Context, q audit.TraceQuery) (audit.Traced, error) {
			t, err := log.Trace(ctx, q, time.Now())
			if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == insufficientPrivilege {
				err = errors.New("this login does not read what became of a version: trace takes the service's login, or a broker (--url)")
			}
			return t, err
		}, pool.Close, nil
	}
	token := broker.NewSecret(c.Token)
	if c.TokenFile != "" {
		if token, err = broker.Ref("file:" + c.TokenFile).Resolve(); err != nil {
			return nil, nil, err
		}
	}
	if token.Empty() {
		return nil, nil, errors.New("say who asks: --token-file or TASKPASS_TOKEN, an auditor's")
	}
	api, err := client.NewClientWithResponses(c.URL, client.WithHTTPClient(&http.Client{Timeout: 30 * time.Second}),
		client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+token.Reveal())
			return nil
		}))
	return func(ctx context.Context, q audit.TraceQuery) (audit.Traced, error) { return askAPI(ctx, api, q) }, func() {}, err
}

func askAPI(ctx context.Context, api *client.ClientWithResponses, q audit.TraceQuery) (t audit.Traced, err error) {
	p := &client.TraceAuditParams{}
	if q.Name != "" {
		p.UpstreamID = &q.Name
	}
	if q.Fingerprint != nil {
		p.Fingerprint = new(audit.Fingerprint(q.Fingerprint))
	}
	if !q.At.IsZero() {
		p.At = &q.At
	}
	if q.Limit > 0 {
		p.Limit = &q.Limit
	}
	answer, err := api.TraceAuditWithResponse(ctx, p)
	if err != nil {
		return t, err
	}
	if answer.StatusCode() != http.StatusOK {
		return t, problem(answer.HTTPResponse, answer.Body)
	}
	return t, json.Unmarshal(answer.Body, &t)
}

// printHeld tells who, what, when and why, whether it is dead, and how that is known.
func printHeld(w io.Writer, h audit.Held) {
	task := h.TaskID
	if h.ParentTaskID != "" {
		task += " (of " + h.ParentTaskID + ")"
	}
	// Each text stays on its line, and shows all that is in it.
	say := func(format string, args ...any) {
		for i, a := range args {
			if text, ok := a.(string); ok {
				args[i] = audit.VisibleLine(text)
			}
		}
		_, _ = fmt.Fprintf(w, format, args...)
	}
	say("%s version %d, %s\n", h.CredentialID, h.Version, h.State)
	say("  task      %s\n  agent     %s\n  asked by  %s\n  profile   %s (%s) at %s\n", task, h.AgentID, h.Caller, h.Profile, h.Provider, h.Upstream)
	say("  scopes    %s (asked for: %s)\n", strings.Join(h.Scopes, " "), strings.Join(h.RequestedScopes, " "))
	say("  from      %s to %s\n", stampOf(h.IssuedAt), stampOf(h.ExpiresAt))
	say("  alive     %s\n", lifeOf(h.Life))
	for _, c := range h.Contradictions {
		say("  TAMPERED  the ledger says %s %q, the record %q (%s)\n", c.Field, c.Ledger, c.Record, c.EventID)
	}
	if h.Cause != "" {
		say("  because   %s%s\n", h.Cause, quoted(h.Reason))
	}
	for _, body := range h.Events {
		var e struct {
			At     time.Time
			Type   string
			Caller struct{ Name, Auth, Addr string }
			Reason string
			Code   string
		}
		if json.Unmarshal(body, &e) != nil {
			continue
		}
		say("  %s  %-28s %s %s %s %s%s\n", stampOf(e.At), e.Type, e.Caller.Name, e.Caller.Auth, e.Caller.Addr, e.Code, quoted(e.Reason))
	}
}

func stampOf(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func lifeOf(l audit.Life) string {
	text := l.Alive
	switch {
	case l.Since != nil:
		text += ", since " + stampOf(*l.Since)
	case l.Until != nil:
		text += ", until " + stampOf(*l.Until) + " at the latest"
	}
	text += ": " + l.How
	if l.EventID != "" {
		text += " (" + l.EventID + ")"
	}
	return text
}

// quoted is the caller's own words, with nothing in them that a terminal would obey.
func quoted(reason string) string {
	if reason == "" {
		return ""
	}
	return fmt.Sprintf(" %+q", reason)
}
