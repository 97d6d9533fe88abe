package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a Broker needs. Ledger, Sealer and Policy are required.
type Config struct {
	Ledger   Ledger
	Sealer   Sealer
	Policy   Policy
	Profiles Profiles
	Limits   Limits // zero: DefaultLimits
	Lists    Lists  // where List reads; nil: the Ledger

	Clock    func() time.Time // replicas of one ledger must share it: the database's (store.Now); nil: time.Now
	Observer Observer         // nil: nobody watches
	Logger   *slog.Logger     // nil: nothing is logged
	Runner   *Runner          // of background work; nil: one with Logger

	UpstreamTimeout time.Duration // for one Mint or Revoke; zero: 10 s
	MaxAttempts     int           // to end a version before it is stuck; zero: 6
	StuckRetry      time.Duration // between attempts on a stuck version; zero: 15 min
	RotationCheck   time.Duration // between looks whether a disclosed key was replaced; zero: 1 min
	SweepEvery      time.Duration // between looks for due work; zero: 1 s
	LookEvery       time.Duration // between a watcher's own looks, for a hint may be lost; zero: 5 s
	Backoff         time.Duration // after the first failed attempt, then doubled; zero: 2 s

	// Reached is called at named points of the issuing and ending paths, so that crash tests can stop the process
	// there. nil in production.
	Reached func(point string)
}

// MaxClockDifference is how far a process's clock may be from the ledger's before an operator should know. What runs on
// the process's own clock (TLS, signed requests to vendors) tolerates some minutes; NTP keeps clocks within a second.
const MaxClockDifference = 5 * time.Second

// Observer watches the broker's work. Implementations are quick and safe for concurrent use.
type Observer interface {
	// Phase is one part of an issuance: policy, intent, upstream, outcome.
	Phase(profile, phase string, took time.Duration)
	// Done is one use case at its end: op is "issue" or "revoke", outcome "ok", a code or a state.
	Done(op, profile, provider, outcome string)
	// Lag is how late a piece of due work was begun.
	Lag(provider string, late time.Duration)
	// Level is what an upstream said of one of its limits when it was last asked.
	Level(profile, name string, value float64)
}

// Broker is the domain's use cases: policy → intent → upstream → outcome. It is safe for concurrent use; any number of
// brokers share one ledger.
type Broker struct {
	Config
	throttles throttles
	profiles  atomic.Pointer[profileSet] // in force
	limits    atomic.Pointer[Limits]
	watches   *watches

	replacing sync.Mutex // guards what follows
	retired   []*profileSet
	closed    bool
}

// New validates the configuration and makes a Broker.
func New(cfg Config) (*Broker, error) {
	if cfg.Ledger == nil || cfg.Sealer == nil || cfg.Policy == nil {
		return nil, errors.New("broker: Ledger, Sealer and Policy are required")
	}
	orDefault(&cfg.UpstreamTimeout, 10*time.Second)
	orDefault(&cfg.StuckRetry, 15*time.Minute)
	orDefault(&cfg.RotationCheck, time.Minute)
	orDefault(&cfg.SweepEvery, time.Second)
	orDefault(&cfg.LookEvery, 5*time.Second)
	orDefault(&cfg.Backoff, 2*time.Second)
	orDefault(&cfg.MaxAttempts, 6)
	if cfg.Lists == nil {
		cfg.Lists = cfg.Ledger
	}
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Observer == nil {
		cfg.Observer = nobody{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Runner == nil {
		cfg.Runner = NewRunner(cfg.Logger)
	}
	if cfg.Reached == nil {
		cfg.Reached = func(string) {}
	}
	b := &Broker{Config: cfg, watches: newWatches(cfg.Ledger, cfg.LookEvery, cfg.Runner)}
	b.SetLimits(cfg.Limits)
	if err := b.SetProfiles(cfg.Profiles); err != nil {
		return nil, err
	}
	return b, nil
}

func orDefault[T ~int | ~int64](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// SetLimits replaces the limits in force.
func (b *Broker) SetLimits(l Limits) { b.limits.Store(&l) }

// ProfilesFor lists the profiles that the caller may ask for something; others see every profile's offer as it is.
func (b *Broker) ProfilesFor(caller Caller) ([]Profile, error) {
	if err := caller.mayUse(useOffers); err != nil {
		return nil, err
	}
	var list []Profile
	for _, p := range b.profiles.Load().profiles.Sorted() {
		if caller.ReadsAll() {
			list = append(list, p)
		} else if scopes, ok := b.Policy.Visible(caller, p); ok {
			p.Scopes = scopes
			list = append(list, p)
		}
	}
	return list, nil
}

// profile finds a profile for what needs no call to its provider: see use.
func (b *Broker) profile(name string) (Profile, bool) {
	p, ok := b.profiles.Load().profiles[name]
	return p, ok
}

// now is the present as the ledger keeps it: UTC, whole microseconds, which is what PostgreSQL stores.
func (b *Broker) now() time.Time { return b.Clock().UTC().Truncate(time.Microsecond) }

// upstream calls a provider within the time limit and turns its panic into an error. The panic's value is not shown: it
// may hold a secret (P7).
func (b *Broker) upstream(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, b.UpstreamTimeout)
	defer cancel()
	err := b.Runner.Do(ctx, "provider", func() error { return call(ctx) })
	if p, ok := err.(*PanicError); ok { //nolint:errorlint // Do returns it as it is
		return Errorf(CodeUpstreamError, "the provider failed unexpectedly").Because(p)
	}
	return err
}

type nobody struct{}

func (nobody) Phase(string, string, time.Duration) {}
func (nobody) Done(string, string, string, string) {}
func (nobody) Lag(string, time.Duration)           {}
func (nobody) Level(string, string, float64)       {}

// Capabilities are the promises of a profile's provider; none for a profile that is no longer configured.
func (b *Broker) Capabilities(profile string) Capabilities {
	p, ok := b.profile(profile)
	if !ok {
		return Capabilities{Revoke: RevokeNone}
	}
	return p.Upstream.Capabilities()
}

// AuditRead puts on the record that somebody read it, and by which filters.
func (b *Broker) AuditRead(ctx context.Context, caller Caller, filters map[string]string) error {
	return b.Ledger.Record(ctx, Event{ID: NewEventID(), At: b.now(), Type: EventAuditRead, Caller: caller, Trace: filters})
}

// AuditTampered puts on the record that its tree does not extend what was signed.
func (b *Broker) AuditTampered(ctx context.Context, reason string) error {
	return b.Ledger.Record(ctx, Event{ID: NewEventID(), At: b.now(), Type: EventAuditTampered, Caller: sweeper, Reason: reason})
}

// ConfigLoaded puts on the record which profiles are in force from now on.
func (b *Broker) ConfigLoaded(ctx context.Context, fingerprint []byte) error {
	names := map[string]string{}
	for _, p := range b.profiles.Load().profiles.Sorted() {
		names[p.Name] = p.Provider
	}
	return b.Ledger.Record(ctx, Event{
		ID: NewEventID(), At: b.now(), Type: EventConfigLoaded, Caller: sweeper, Trace: names, Fingerprint: fingerprint,
	})
}
