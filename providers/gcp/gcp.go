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
	lookupTimeout   = 2 * time.Second
	vacateTimeout   = 5 * time.Second
	firstGracePause = 200 * time.Millisecond
)

// Deps is what the provider needs of the broker's house. All are required.
type Deps struct {
	Accounts broker.Accounts
	Clock    func() time.Time
	Logger   *slog.Logger
}

// Provider implements broker.Provider for one profile.
type Provider struct {
	cfg      Config
	accounts broker.Accounts
	clock    func() time.Time
	logger   *slog.Logger
	clients  *clients
	name     string // of what it keeps

	mu  sync.Mutex
	ids map[string]identity // by email
}

type identity struct {
	uniqueID string
	until    time.Time // ask again after this, if there is none
}

// New makes the provider of one profile. It reads the broker's own credentials but asks Google nothing.
func New(ctx context.Context, cfg Config, deps Deps) (*Provider, error) {
	cfg.Accounts = slices.Sorted(slices.Values(cfg.Accounts))
	c, err := newClients(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p := &Provider{
		cfg: cfg, accounts: deps.Accounts, clock: deps.Clock, logger: deps.Logger, clients: c,
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
	return p.mintOn(ctx, c, hold{email: p.cfg.ServiceAccount})
}

// hold is the account that a mint works on.
type hold struct {
	email   string
	fresh   bool // this version took it: nothing that was made for it before works any more
	enabled bool // this mint enabled it
}

func (p *Provider) mintOn(ctx context.Context, c broker.Credential, h hold) (m broker.Minted, err error) {
	switch {
	case p.cfg.Mode == modeKey:
		m, err = p.mintKey(ctx, c, &h)
	case p.cfg.Audience != "":
		m, err = p.mintIDToken(ctx, c, &h)
	default:
		m, err = p.mintAccessToken(ctx, c, &h)
	}
	if err != nil {
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
	if h.enabled {
		m.Trace["usable_after"] = p.clock().UTC().Add(settleAfter).Format(time.RFC3339)
	}
	return m, nil
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
// and looked up again a minute later.
func (p *Provider) uniqueID(ctx context.Context, email string) string {
	now := p.clock()
	p.mu.Lock()
	known, ok := p.ids[email]
	p.mu.Unlock()
	if ok && (known.uniqueID != "" || now.Before(known.until)) {
		return known.uniqueID
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found := identity{until: now.Add(time.Minute)}
	if a, err := p.clients.admin.GetServiceAccount(ctx, &adminpb.GetServiceAccountRequest{Name: resource(email)}); err == nil && broker.ValidID(a.GetUniqueId()) {
		found.uniqueID = a.GetUniqueId()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[email] = found
	return found.uniqueID
}

// enable makes an account's tokens work. It is called only by who holds the account, when nothing that was made for it
// before would work.
func (p *Provider) enable(ctx context.Context, id broker.VersionID, email string) error {
	ctx, _ = watch(ctx, id)
	return p.clients.admin.EnableServiceAccount(ctx, &adminpb.EnableServiceAccountRequest{Name: resource(email)})
}

func (p *Provider) disable(ctx context.Context, id broker.VersionID, email string) error {
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
			if err := p.enable(ctx, c.Version.ID, h.email); err != nil {
				return nothing(read(err).meaning(h.email))
			}
			h.enabled = true
			continue
		case a.code == codeNotFound, h.enabled && (a.unseen() || a.disabled()):
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
