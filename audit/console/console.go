package console

import (
	"context"
	"embed"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// Record is the audit record; *audit.Log is one.
type Record interface {
	Find(ctx context.Context, q audit.Query) (audit.Page, error)
	Refusals(ctx context.Context, since time.Time, width time.Duration) (list []audit.Refused, complete bool, err error)
	Trace(ctx context.Context, q audit.TraceQuery, now time.Time) (audit.Traced, error)
}

// Ledger is credentials with their versions. It is asked for callers who may read all.
type Ledger interface {
	Credentials(ctx context.Context, f broker.Filter) ([]broker.Credential, error)
	VersionsOf(ctx context.Context, id broker.CredentialID, limit int) ([]broker.Credential, error)
	VersionsOfTask(ctx context.Context, caller, id string, limit int) ([]broker.Credential, error)
}

// Tasks finds the tasks of that id: every caller's where caller is empty.
type Tasks interface {
	FindTasks(ctx context.Context, caller, id string) ([]broker.Task, error)
}

// Counts is how much of what there is now.
type Counts interface {
	LiveBy(ctx context.Context, kind string, limit int) ([]broker.Count, error)
	Slots(ctx context.Context) ([]broker.Count, error)
	Troubled(ctx context.Context) ([]broker.Count, error)
}

// Callers finds out whose token it is, by the token or by its SHA-256; an error is a *broker.Error.
type Callers interface {
	Authenticate(ctx context.Context, token string) (broker.Caller, error)
	Holder(ctx context.Context, sha256 []byte) (broker.Caller, error)
}

// Recorder puts on the record that somebody read it, and by which filters; *broker.Broker is one.
type Recorder interface {
	AuditRead(ctx context.Context, caller broker.Caller, filters map[string]string) error
}

// Tree is the record's Merkle tree; *sequence.Log is one. What it gives is checked here again.
type Tree interface {
	Prover
	Checkpoint(ctx context.Context) (tree.Checkpoint, error)
	Lag(ctx context.Context) (events int64, oldest time.Duration, err error)
}

// Prover gives proofs.
type Prover interface {
	Include(ctx context.Context, eventID string, index, size int64) (sequence.Inclusion, error)
	IncludeSeveral(ctx context.Context, eventIDs []string) ([]sequence.Included, error)
	Consist(ctx context.Context, from, to int64) (sequence.Consistency, error)
}

// Config is what the console works with. Tree, Refused, Stopping and Clock may be left out.
type Config struct {
	Record   Record
	Ledger   Ledger
	Tasks    Tasks
	Counts   Counts
	Callers  Callers
	Recorder Recorder
	Sealer   broker.Sealer       // seals sessions; all replicas have the same keys
	Limits   *broker.Concurrency // bounds what is being read and followed; shared with the API; nil: the default ones
	Logger   *slog.Logger

	Tree     Tree            // nil: nothing is signed, and nothing is verified
	Refused  func() string   // why this process signs no more checkpoints; nil or "": it does
	Stopping context.Context // done when the service stops: live pages end then; nil: never
	Clock    func() time.Time

	Every time.Duration // between looks at what changed, for a live page; zero: 1 s
}

//go:embed templates/*.html
var templates embed.FS

//go:embed static
var static embed.FS

type console struct {
	Config
	pages   *template.Template
	guesses *broker.Guesses // of tokens, at the sign-in
	proven  proven
	assets  map[string]asset
	mux     *http.ServeMux
}

// New makes the handler of "/" and everything below "/console". Whoever mounts it bounds request bodies and sets the
// answer's X-Request-Id before, as package openapi does.
func New(cfg Config) (http.Handler, error) {
	if cfg.Record == nil || cfg.Ledger == nil || cfg.Tasks == nil || cfg.Counts == nil || cfg.Callers == nil ||
		cfg.Recorder == nil || cfg.Sealer == nil || cfg.Logger == nil {
		return nil, errors.New("console: Record, Ledger, Tasks, Counts, Callers, Recorder, Sealer and Logger are required")
	}
	if cfg.Stopping == nil {
		cfg.Stopping = context.Background()
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Refused == nil {
		cfg.Refused = func() string { return "" }
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	if cfg.Limits == nil {
		cfg.Limits = broker.NewConcurrency(broker.ConcurrencyBounds{})
	}
	c := &console{Config: cfg, guesses: broker.NewGuesses(cfg.Clock), mux: http.NewServeMux()}
	var err error
	if c.assets, err = readAssets(); err != nil {
		return nil, err
	}
	if c.pages, err = template.New("").Funcs(c.words()).ParseFS(templates, "templates/*.html"); err != nil {
		return nil, err
	}
	c.routes()
	return headers(http.NewCrossOriginProtection().Handler(c.mux)), nil
}

func (c *console) routes() {
	c.mux.HandleFunc("GET /console/signin", c.showSignIn)
	c.mux.HandleFunc("POST /console/signin", c.signIn)
	c.mux.HandleFunc("POST /console/signout", c.signOut)
	c.mux.HandleFunc("GET /console/static/{name}", c.serveAsset)
	for path, build := range map[string]build{
		"/":                    c.overview,
		"/console/events":      c.events,
		"/console/credentials": c.credentials,
		"/console/credential":  c.credential,
		"/console/task":        c.task,
		"/console/trace":       c.trace,
		"/console/tree":        c.tree,
		"/console/event":       c.event,
	} {
		pattern := "GET " + path
		if path == "/" {
			pattern += "{$}" // and nothing below it
		}
		c.mux.HandleFunc(pattern, c.signedIn(c.page(build)))
	}
	c.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, nil, broker.Errorf(broker.CodeNotFound, "there is no such page"))
	})
}

// policy lets a page load its own style, script and images, talk to its own origin, and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

var _ Tree = (*sequence.Log)(nil)
var _ Record = (*audit.Log)(nil)
