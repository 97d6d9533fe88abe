// Package config reads the one YAML file of a production `taskpass serve`.
//
// It decides whether the file is well-formed and makes sense, and tells all that is wrong with it at once, each fault
// with its line. It refuses to guess: an unknown field, a value of another type, a field without a value and a key that
// stands twice are faults, and who may ask must be said in words. It holds no secret, only references to where secrets
// are kept, and repeats no value of the file in an error: somebody may have pasted the secret itself.
package config

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"reflect"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers"
)

// maxSize bounds a file, in bytes. A large installation's is some hundred kilobytes.
const maxSize = 1 << 20

// File is a configuration that passed every check. Parse and Load make it.
type File struct {
	Listen          string             `yaml:"listen"`           // address:port; absent: 127.0.0.1:8080
	TLS             *TLS               `yaml:"tls,omitempty"`    // absent: plain HTTP, for loopback or a proxy that ends TLS
	Database        Database           `yaml:"database"`         // required
	Seal            Seal               `yaml:"seal"`             // required
	UpstreamTimeout time.Duration      `yaml:"upstream_timeout"` // for one call to a provider, 1s-60s; absent: 10s
	ShutdownTimeout time.Duration      `yaml:"shutdown_timeout"` // for what is under way when told to stop, 1s-10m; absent: 30s
	Log             Log                `yaml:"log"`
	Limits          Limits             `yaml:"limits,omitempty"`
	Concurrency     Concurrency        `yaml:"concurrency,omitempty"`
	Audit           *Audit             `yaml:"audit,omitempty"` // absent: no checkpoint is signed, and nothing proves the record
	Profiles        map[string]Profile `yaml:"profiles"`        // at least one

	place place             // where everything stands, for what Open finds
	sum   [sha256.Size]byte // of the text
}

// TLS names the files of the service's certificate. All paths are absolute.
type TLS struct {
	CertFile     string `yaml:"cert_file"`                // PEM, the leaf first
	KeyFile      string `yaml:"key_file"`                 // PEM
	ClientCAFile string `yaml:"client_ca_file,omitempty"` // PEM; absent: clients need no certificate
}

// Database is the ledger's PostgreSQL. The URL may bear a password, so only a reference to it stands here.
type Database struct {
	URL            broker.Ref `yaml:"url"`                       // required
	MaxConnections int        `yaml:"max_connections,omitempty"` // 1-1000; absent: the store's own number
	// ReadConnections are apart from those: for lists, searches and the console, 1-1000; absent: the store's own number.
	ReadConnections int `yaml:"read_connections,omitempty"`
}

// Seal names the keyset that secrets are sealed with at rest.
type Seal struct {
	Keyset broker.Ref `yaml:"keyset"` // required
}

// Limits bound how many versions may be alive at once; what is left out is broker.DefaultLimits'.
type Limits struct {
	PerTask    int `yaml:"per_task,omitempty"`
	PerAgent   int `yaml:"per_agent,omitempty"`
	PerProfile int `yaml:"per_profile,omitempty"`
	PerCaller  int `yaml:"per_caller,omitempty"`
}

func defaultLimits() Limits {
	d := broker.DefaultLimits
	return Limits{int(d.PerTask), int(d.PerAgent), int(d.PerProfile), int(d.PerCaller)}
}

// Broker is the limits as the broker takes them.
func (l Limits) Broker() broker.Limits {
	return broker.Limits{
		PerTask: int64(l.PerTask), PerAgent: int64(l.PerAgent), PerProfile: int64(l.PerProfile), PerCaller: int64(l.PerCaller),
	}
}

// Concurrency bounds what clients may have open at the same time in one process; see broker.Concurrency. What is left out
// is broker.DefaultConcurrency's.
type Concurrency struct {
	Requests        Bounds `yaml:"requests,omitempty"`
	Watches         Bounds `yaml:"watches,omitempty"`
	Searches        Bounds `yaml:"searches,omitempty"`
	Exports         Bounds `yaml:"exports,omitempty"`
	LivePages       Bounds `yaml:"live_pages,omitempty"`
	Authentications Bounds `yaml:"authentications,omitempty"`
}

// Bounds are per_token ≤ per_caller ≤ total, each at least 1.
type Bounds struct {
	PerToken  int `yaml:"per_token,omitempty"`
	PerCaller int `yaml:"per_caller,omitempty"`
	Total     int `yaml:"total,omitempty"`
}

func defaultConcurrency() Concurrency {
	d := broker.DefaultConcurrency
	return Concurrency{Bounds(d.Requests), Bounds(d.Watches), Bounds(d.Searches), Bounds(d.Exports), Bounds(d.LivePages), Bounds(d.Lookups)}
}

// Broker is the bounds as the broker takes them.
func (c Concurrency) Broker() broker.ConcurrencyBounds {
	return broker.ConcurrencyBounds{
		Requests: broker.Bounds(c.Requests), Watches: broker.Bounds(c.Watches), Searches: broker.Bounds(c.Searches),
		Exports: broker.Bounds(c.Exports), LivePages: broker.Bounds(c.LivePages), Lookups: broker.Bounds(c.Authentications),
	}
}

// Log says how much is logged.
type Log struct {
	Level string `yaml:"level"` // debug, info, warn or error; absent: info
}

// Profile is an operator's named offer; see broker.Profile. Beside these fields stands the provider's own section,
// which bears the provider's name.
type Profile struct {
	Description string `yaml:"description,omitempty"`
	Provider    string `yaml:"provider"` // one of providers.Names
	TTL         TTL    `yaml:"ttl"`

	MaxLifetime time.Duration `yaml:"max_lifetime,omitempty"` // no refresh outlives it; absent: 24h, or ttl.max if longer
	Overlap     time.Duration `yaml:"overlap,omitempty"`      // a refreshed version stays good this long; absent: 10m
	Ticket      Ticket        `yaml:"ticket,omitempty"`
	// Env are fixed environment variables beside the provider's own in what agents get; none may be secret. Absent: none.
	Env   map[string]string `yaml:"env,omitempty"`
	Allow []Rule            `yaml:"allow"` // at least one: what no rule allows is refused

	providers.Config `yaml:",inline"`
}

// TTL bounds the life of a credential: min ≤ default ≤ max.
type TTL struct {
	Default time.Duration `yaml:"default"`       // required
	Min     time.Duration `yaml:"min,omitempty"` // absent: the shortest that the provider can do, and at least 1s
	Max     time.Duration `yaml:"max"`           // required
}

// Ticket is how tickets of a profile work.
type Ticket struct {
	TTL     time.Duration `yaml:"ttl,omitempty"`      // how long one may be redeemed; absent: 10m
	OnReuse string        `yaml:"on_reuse,omitempty"` // on a second redemption: "keep" (absent) or "revoke" what the first got
}

// Rule is a broker.Rule as it is written. A list that is left out means any; one that is written is not empty.
type Rule struct {
	Callers []string      `yaml:"callers"` // required; "*" for whoever may issue
	Tasks   []string      `yaml:"tasks,omitempty"`
	Agents  []string      `yaml:"agents,omitempty"`
	Scopes  []string      `yaml:"scopes,omitempty"`
	MaxTTL  time.Duration `yaml:"max_ttl,omitempty"` // absent: the profile's
}

// Parse reads the text of a file; name is what faults call it. It does no I/O. The error is Faults: everything that is
// wrong, or what keeps the text from being read at all.
func Parse(name string, text []byte) (*File, error) {
	r := &report{place: place{file: name, lines: map[string]int{}}, broken: map[string]bool{}}
	f := &File{
		Listen: "127.0.0.1:8080", UpstreamTimeout: 10 * time.Second, ShutdownTimeout: 30 * time.Second,
		Log: Log{Level: "info"}, Limits: defaultLimits(), Concurrency: defaultConcurrency(),
	}
	if root := r.document(text); root != nil {
		r.lines[""] = root.Line
		d := decoder{report: r}
		d.value(root, "", reflect.ValueOf(f).Elem())
		if !d.spent {
			r.check(f)
		}
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	f.place, f.sum = r.place, sha256.Sum256(text)
	return f, nil
}

// Fingerprint is the SHA-256 of the file's text, by which the audit record tells which configuration was in force.
func (f *File) Fingerprint() []byte { return f.sum[:] }

// Load reads the file at path. The error is Faults unless the file itself cannot be read.
func Load(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer file.Close()
	var text bytes.Buffer
	// One byte more than Parse takes, so that it sees that there is too much; never more, whatever the path leads to.
	if _, err := io.Copy(&text, io.LimitReader(file, maxSize+1)); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return Parse(path, text.Bytes())
}
