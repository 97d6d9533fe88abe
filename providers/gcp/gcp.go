package gcp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"

	"github.com/taskpass/taskpass/broker"
)

const (
	exhaustedPause  = 30 * time.Second // when nobody knows when an account comes back
	settleAfter     = time.Minute      // how long IAM may take to show what is fresh everywhere
	lastMoment      = 30 * time.Second // of a rest: less than any skew, so that all that was made is dead, and more than moveTimeout
	moveTimeout     = 10 * time.Second // for enabling or disabling
	identityStays   = 10 * time.Minute // an account may be deleted and made anew under its email
	lookupTimeout   = 2 * time.Second
	vacateTimeout   = 5 * time.Second
	firstGracePause = 200 * time.Millisecond
)

// Deps is what the provider needs of the broker. All but Shared are required.
type Deps struct {
	Shared   bool // the rules of profiles let several callers use one of the accounts: each has a share of them
	Accounts broker.Accounts
	Clock    func() time.Time
	Logger   *slog.Logger
}

// Provider implements broker.Provider for one profile.
type Provider struct {
	cfg      Config
	accounts broker.Accounts
	shared   bool
	clock    func() time.Time
	logger   *slog.Logger
	clients  *clients
	name     string // of what it keeps

	mu  sync.Mutex
	ids map[string]identity // by email
}

type identity struct {
	uniqueID string
	until    time.Time // ask again after this
}

// New makes the provider of one profile. It reads the broker's own credentials but asks Google nothing.
func New(ctx context.Context, cfg Config, deps Deps) (*Provider, error) {
	cfg.Accounts = slices.Sorted(slices.Values(cfg.Accounts))
	c, err := newClients(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p := &Provider{
		cfg: cfg, accounts: deps.Accounts, shared: deps.Shared && cfg.SharePercent < 100, clock: deps.Clock, logger: deps.Logger, clients: c,
		name: "gcp:" + cfg.ServiceAccount, ids: map[string]identity{},
	}
	if cfg.pooled() { // profiles with the same accounts share them
		sum := sha256.Sum256([]byte(strings.Join(cfg.Accounts, " ")))
		p.name = "gcp-accounts:" + hex.EncodeToString(sum[:8])
	}
	return p, nil
}

// Close ends the connections to Google.
func (p *Provider) Close() error { return p.clients.close() }

// Capabilities implements broker.Provider.
func (p *Provider) Capabilities() broker.Capabilities { return p.cfg.Capabilities() }

// Upstream implements broker.Provider: the shared account, or the set of accounts of which a task holds one.
func (p *Provider) Upstream(broker.Credential) string { return p.name }

// Quota implements broker.Metered: Google counts by the project of the asking identity.
func (p *Provider) Quota() string {
	return "gcp/" + string(p.cfg.CredentialsFile) + string(p.cfg.TokenFile)
}

// Mint implements broker.Provider.
func (p *Provider) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	if p.cfg.pooled() {
		return p.mintPooled(ctx, c)
	}
	return p.mintOn(ctx, c, &hold{email: p.cfg.ServiceAccount})
}

// hold is the account that a mint works on.
type hold struct {
	email    string
	fresh    bool      // this version took it: nothing that was made for it before works any more
	enabled  bool      // this mint enabled it
	doubtful bool      // enabling it was asked, and failed or was not answered
	settled  time.Time // when IAM surely shows everywhere what changed about it; zero: nothing did
}

// settling tells that IAM may not show everywhere yet what changed.
func (h *hold) settling(now time.Time) bool { return now.Before(h.settled) }

func (p *Provider) mintOn(ctx context.Context, c broker.Credential, h *hold) (m broker.Minted, err error) {
	switch {
	case p.cfg.Mode == modeKey:
		m, err = p.mintKey(ctx, c, h)
	case p.cfg.Audience != "":
		m, err = p.mintIDToken(ctx, c, h)
	default:
		m, err = p.mintAccessToken(ctx, c, h)
	}
	if err != nil {
		return broker.Minted{}, err
	}
	if err := p.endsInTime(ctx, c, m.UpstreamExpiresAt); err != nil {
		return broker.Minted{}, err
	}
	m.Trace["service_account"] = h.email
	if id := p.uniqueID(ctx, h.email); id != "" {
		m.Trace["unique_id"] = id
	}
	if !m.UpstreamExpiresAt.IsZero() {
		m.Trace["expire_time"] = m.UpstreamExpiresAt.Format(time.RFC3339)
	}
	if len(p.cfg.Delegates) > 0 {
		m.Trace["delegates"] = strings.Join(p.cfg.Delegates, " ")
	}
	if h.settling(p.clock()) {
		m.Trace[broker.TraceUsableAfter] = h.settled.UTC().Format(time.RFC3339)
	}
	return m, nil
}

// endsInTime refuses what lives longer than was asked for: expires_at would not be true. Nobody is handed it, and an
// account that a task holds rests until its true end.
func (p *Provider) endsInTime(ctx context.Context, c broker.Credential, end time.Time) error {
	if !end.After(c.Version.ExpiresAt.Add(p.cfg.skew())) {
		return nil
	}
	p.logger.ErrorContext(ctx, "Google made something that outlives its version", "version_id", c.Version.ID, "upstream_expires_at", end)
	if p.cfg.pooled() {
		if err := p.accounts.Prolong(ctx, c, end.Add(p.cfg.skew())); err != nil {
			return broker.Errorf(broker.CodeUnavailable, "that an account is used for longer could not be recorded").Because(err)
		}
	}
	return broker.Errorf(broker.CodeUpstreamError, "what Google made lives for longer than was asked, so it was dropped: the operator should look at the broker's clock")
}

// Revoke implements broker.Provider.
func (p *Provider) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	switch {
	case p.cfg.pooled():
		return p.revokePooled(ctx, c)
	case p.cfg.Mode == modeKey:
		return p.revokeKey(ctx, c, p.cfg.ServiceAccount)
	}
	return selfExpires(c), nil
}

func selfExpires(c broker.Credential) broker.Revocation {
	return broker.Revocation{Result: broker.ResultExpires, EffectiveAt: c.Version.ExpiresAt, Basis: "self_expires"}
}

// uniqueID is the account's number, which its email may outlive. It is nice to have: what cannot be looked up is left out,
// and looked up again a minute later. What was found is believed for some minutes.
func (p *Provider) uniqueID(ctx context.Context, email string) string {
	now := p.clock()
	p.mu.Lock()
	known, ok := p.ids[email]
	p.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.uniqueID
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found := identity{until: now.Add(time.Minute)}
	if a, err := p.clients.admin.GetServiceAccount(ctx, &adminpb.GetServiceAccountRequest{Name: resource(email)}); err == nil && broker.ValidID(a.GetUniqueId()) {
		found = identity{a.GetUniqueId(), now.Add(identityStays)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[email] = found
	return found.uniqueID
}

// enable makes the tokens of an account work that h's version took. Nothing that was made for it before would work.
func (p *Provider) enable(ctx context.Context, id broker.VersionID, h *hold) error {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	ctx, sent := watch(ctx, id)
	if err := p.clients.admin.EnableServiceAccount(ctx, &adminpb.EnableServiceAccountRequest{Name: resource(h.email)}); err != nil {
		h.doubtful = sent()
		return nothing(read(err).meaning(h.email))
	}
	h.enabled, h.settled = true, p.clock().Add(settleAfter)
	return nil
}

func (p *Provider) disable(ctx context.Context, id broker.VersionID, email string) error {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	ctx, _ = watch(ctx, id)
	return p.clients.admin.DisableServiceAccount(ctx, &adminpb.DisableServiceAccountRequest{Name: resource(email)})
}

// ask makes one call that mints, and again only after definite refusals of the kinds that a fresh or just enabled account
// gives for a while, within the grace: a refused call made nothing.
func (p *Provider) ask(ctx context.Context, c broker.Credential, h *hold, call func(context.Context) error) error {
	pause, until := firstGracePause, time.Now().Add(p.cfg.grace())
	for {
		watched, sent := watch(ctx, c.Version.ID)
		err := call(watched)
		if err == nil {
			return nil
		}
		if isNothing(err) { // it was never called
			return err
		}
		a := read(err)
		if !a.definite() || ctx.Err() != nil {
			return mintError(err, sent(), h.email)
		}
		switch {
		case h.fresh && !h.enabled && a.disabled() && p.cfg.Mode != modeKey:
			if err := p.enable(ctx, c.Version.ID, h); err != nil {
				return err
			}
			continue
		case a.code == codeNotFound:
			h.settled = p.clock().Add(settleAfter)
		case h.settling(p.clock()) && (a.unseen() || h.enabled && a.disabled()):
		default:
			return nothing(a.meaning(h.email))
		}
		if time.Now().Add(pause).After(until) || !waits(ctx, pause) {
			return nothing(a.meaning(h.email))
		}
		pause *= 2
	}
}

// waits returns false if the context ends first.
func waits(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// lifetime is whole seconds, so that what is made dies at or before its end.
func (p *Provider) lifetime(c broker.Credential) (time.Duration, error) {
	left := c.Version.ExpiresAt.Sub(p.clock()).Truncate(time.Second)
	if left < time.Second {
		return 0, nothing(broker.Errorf(broker.CodeUpstreamTimeout, "its end came before Google could be asked"))
	}
	return left, nil
}

// isNothing tells whether surely nothing was made.
func isNothing(err error) bool { return errors.Is(err, broker.ErrNotMinted) }
