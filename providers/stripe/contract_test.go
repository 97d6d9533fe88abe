package stripe_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
	"github.com/taskpass/taskpass/providers/stripe"
)

func TestContract(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for mode, start := range map[string]func(*testing.T) providertest.Subject{
		"managed, test mode": func(t *testing.T) providertest.Subject {
			r := newRig(t, func(c *sandbox.Config) { c.ExpireUses = 2 })
			return r.managedSubject(t, ledger)
		},
		"managed, live": func(t *testing.T) providertest.Subject {
			r := newRig(t, func(c *sandbox.Config) { c.SecretKey, c.PageSize = livePlatform, 3 })
			return r.managedSubject(t, ledger)
		},
		"ephemeral": func(t *testing.T) providertest.Subject { return newRig(t).ephemeralSubject(t, ledger) },
		"pool":      func(t *testing.T) providertest.Subject { return newPool(t, providertest.AtOnce+2).subject(t, ledger) },
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, start)
		})
	}
}

func (r *rig) managedSubject(t *testing.T, ledger *store.Store) providertest.Subject {
	managed(&r.config)
	unreachable := r.config
	unreachable.Endpoint = "http://" + providertest.Refusing(t)
	s := providertest.Subject{
		Provider: r.open(t, ledger), Ledger: book{ledger, r.safe}, Clock: r.clock,
		Credential: func() broker.Credential { return r.credential("customers:read") },
		Alive:      r.alive,
		Known: func(testing.TB) []broker.VersionID {
			var ids []broker.VersionID
			for _, k := range r.Keys() {
				ids = append(ids, broker.VersionID(strings.TrimPrefix(k.Name, "taskpass-")))
			}
			return ids
		},
		Calls: func() int { return r.Calls(createKey) },
		Fault: r.faults(createKey, expireKey), Lie: r.lies(createKey, expireKey),
		Lost: func(testing.TB) broker.Bundle {
			keys := r.Keys()
			return bundleOf(keys[len(keys)-1].Secret)
		},
	}
	r.config = unreachable
	s.Unreachable = r.open(t, ledger)
	r.config.Endpoint = r.url
	return s
}

func (r *rig) ephemeralSubject(t *testing.T, ledger *store.Store) providertest.Subject {
	ephemeral(&r.config)
	s := providertest.Subject{
		Provider: r.open(t, ledger), Ledger: book{ledger, r.safe}, Clock: r.clock,
		Credential: func() broker.Credential { return r.credential("wallet") },
		Alive:      r.alive,
		Known: func(testing.TB) []broker.VersionID {
			var ids []broker.VersionID
			for _, k := range r.EphemeralKeys() {
				ids = append(ids, broker.VersionID(k.IdempotencyKey))
			}
			return ids
		},
		Calls: func() int { return r.Calls(createEph) },
		Fault: r.faults(createEph, deleteEph), Lie: r.lies(createEph, deleteEph),
	}
	var lost broker.Bundle
	s.Lost = func(testing.TB) broker.Bundle { return lost }
	// A lost key is deleted by the time it is asked for: it is looked at when the version is known to be lost.
	s.Ledger = onLost{book{ledger, r.safe}, func(id broker.VersionID) {
		for _, k := range r.EphemeralKeys() {
			if k.IdempotencyKey == string(id) {
				lost = bundleOf(k.Secret)
			}
		}
	}}
	r.config.Endpoint = "http://" + providertest.Refusing(t)
	s.Unreachable = r.open(t, ledger)
	r.config.Endpoint = r.url
	return s
}

// onLost is a ledger that tells when a version is taken for lost.
type onLost struct {
	book
	tell func(broker.VersionID)
}

func (o onLost) Move(ctx context.Context, c broker.Credential, from []broker.State, sealed []byte, events ...broker.Event) error {
	if c.Version.State == broker.StateLost {
		o.tell(c.Version.ID)
	}
	return o.book.Move(ctx, c, from, sealed, events...)
}

// faults are the stand-in's, at the call that makes a key or the one that ends it.
func (r *rig) faults(mint, revoke string) func(testing.TB, providertest.Operation, providertest.Fault) (<-chan struct{}, bool) {
	return func(_ testing.TB, at providertest.Operation, f providertest.Fault) (<-chan struct{}, bool) {
		fault := sandbox.Fault{Action: mint, Message: providertest.Canary, Met: make(chan struct{})}
		if at == providertest.Revoke {
			fault.Action = revoke
		}
		switch f {
		case providertest.LoseReply:
			fault.Kind = sandbox.DropReply
		case providertest.Refuse:
			fault.Kind, fault.Status, fault.Code = sandbox.Refuse, 403, "more_permissions_required"
		case providertest.Throttle:
			fault.Kind = sandbox.Throttle
		case providertest.ServerError:
			fault.Kind, fault.Body = sandbox.ServerError, providertest.Canary
		case providertest.Hang:
			fault.Kind = sandbox.Hang
		}
		r.Inject(fault)
		return fault.Met, true
	}
}

// lies alter the answer to the call that makes a key, or to the one that ends it.
func (r *rig) lies(mint, revoke string) func(testing.TB, providertest.Operation, providertest.Lie) bool {
	return func(_ testing.TB, at providertest.Operation, l providertest.Lie) bool {
		ends := func(when time.Time) func([]byte, map[string]any) {
			return func(_ []byte, body map[string]any) {
				if body["expires_at"] = when.UTC().Format(time.RFC3339); mint == createEph {
					body["expires"] = when.Unix()
				}
			}
		}
		secret := func(value string) func([]byte, map[string]any) {
			return func(_ []byte, body map[string]any) {
				if body["secret_key"] = map[string]any{"token": value}; mint == createEph {
					body["secret"] = value
				}
			}
		}
		f := sandbox.Fault{Action: mint, Kind: sandbox.Lie}
		if at == providertest.Revoke {
			f.Action = revoke
		}
		switch now := r.clock.Now(); l {
		case providertest.LoginPage:
			f.Body = "<html>" + providertest.Canary + "</html>"
		case providertest.EmptyAnswer:
			f.Body = "{}"
		case providertest.NoEnd:
			f.Edit = func(_ []byte, body map[string]any) { delete(body, "expires_at"); delete(body, "expires") }
		case providertest.EndedBefore:
			f.Edit = ends(now.Add(-time.Hour))
		case providertest.EndsAtOnce:
			f.Edit = ends(now.Add(5 * time.Second))
		case providertest.EndsIn9999:
			f.Edit = ends(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))
		case providertest.NoSecret:
			f.Edit = secret("")
		case providertest.SpaceInSecret:
			f.Edit = secret("rk_test_C4n4ryC4n4ry\r\n")
		case providertest.HugeSecret:
			f.Edit = secret("rk_test_" + strings.Repeat("a", 5<<20))
		}
		r.Inject(f)
		return true
	}
}

// poolRig is a rig with a pool of restricted keys in files.
type poolRig struct {
	*rig
	name string
}

// newPool makes a pool of n keys, k0, k1, …, which may all read customers.
func newPool(t testing.TB, n int) *poolRig {
	r := &poolRig{newRig(t), "pool-" + string(broker.NewVersionID())}
	r.config.Mode, r.config.SecretKey = "pool", ""
	r.config.Pool = &stripe.Pool{Name: r.name, Disclosed: "accept"}
	for i := range n {
		r.add(t, "k"+string(rune('0'+i)), "customer_read")
	}
	return r
}

// add makes a key in the dashboard and registers it with just the permissions that it has.
func (r *poolRig) add(t testing.TB, name string, permissions ...string) (secret string) {
	t.Helper()
	secret = r.AddKey(sandbox.Key{Name: name, Secret: "rk_test_C4n4ryC4n4ry" + string(broker.NewVersionID()), Permissions: permissions})
	r.register(t, name, secret, permissions...)
	return secret
}

func (r *poolRig) register(t testing.TB, name, secret string, declared ...string) {
	t.Helper()
	r.config.Pool.Keys = append(r.config.Pool.Keys, stripe.Key{Name: name, Value: r.file(t, name, secret), Permissions: declared})
}

// value is what a key's file holds.
func (r *poolRig) value(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(strings.TrimPrefix(string(r.ref(name)), "file:"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (r *poolRig) ref(name string) broker.Ref {
	for _, k := range r.config.Pool.Keys {
		if k.Name == name {
			return k.Value
		}
	}
	return ""
}

// holders are the credentials that hold a key of the pool, by the key's name.
func (r *poolRig) holders(t testing.TB, ledger *store.Store) map[string]broker.CredentialID {
	t.Helper()
	rows, err := ledger.Pool().Query(t.Context(), "SELECT name, credential_id FROM slots WHERE pool = $1 AND state <> 'available'", "stripe:"+r.name)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	holders := map[string]broker.CredentialID{}
	for rows.Next() {
		var name, id string
		if err := rows.Scan(&name, &id); err != nil {
			t.Fatal(err)
		}
		holders[name] = broker.CredentialID(id)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return holders
}

// wire breaks the way to the database of slots when told: the upstream of a pool is its database.
type wire struct {
	broker.Slots
	mu    sync.Mutex
	next  providertest.Fault
	met   chan struct{}
	armed bool
}

func (w *wire) fault(f providertest.Fault) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next, w.met, w.armed = f, make(chan struct{}), true
	return w.met
}

// befall does what was told for the next call that changes something.
func (w *wire) befall(ctx context.Context, call func() error) error {
	w.mu.Lock()
	f, met, armed := w.next, w.met, w.armed
	w.armed = false
	w.mu.Unlock()
	if !armed {
		return call()
	}
	close(met)
	if f == providertest.Hang {
		<-ctx.Done()
		return ctx.Err()
	}
	_ = call()
	return errors.New("the connection broke")
}

func (w *wire) Take(ctx context.Context, pool string, c broker.Credential, keys []broker.KeyChoice, share broker.Share, rest broker.Rest, now time.Time) (name string, ok bool, back time.Time, err error) {
	err = w.befall(ctx, func() (err error) {
		name, ok, back, err = w.Slots.Take(ctx, pool, c, keys, share, rest, now)
		return err
	})
	return name, ok, back, err
}

func (w *wire) Release(ctx context.Context, c broker.Credential, present []byte, rest broker.Rest, now time.Time) error {
	return w.befall(ctx, func() error { return w.Slots.Release(ctx, c, present, rest, now) })
}

func (w *wire) Quarantine(ctx context.Context, id broker.CredentialID) error {
	return w.befall(ctx, func() error { return w.Slots.Quarantine(ctx, id) })
}

func (r *poolRig) subject(t *testing.T, ledger *store.Store) providertest.Subject {
	w := &wire{Slots: ledger}
	return providertest.Subject{
		Provider: r.open(t, w), Ledger: book{ledger, r.safe}, Clock: r.clock,
		Credential: func() broker.Credential { return r.credential("customers:read") },
		Alive:      r.alive,
		Known: func(t testing.TB) []broker.VersionID {
			var ids []broker.VersionID
			for _, id := range r.holders(t, ledger) {
				c, err := ledger.Latest(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, c.Version.ID)
			}
			return ids
		},
		Fault: func(t testing.TB, at providertest.Operation, f providertest.Fault) (<-chan struct{}, bool) {
			switch f {
			case providertest.LoseReply, providertest.Hang:
				return w.fault(f), true
			case providertest.Refuse:
				if at == providertest.Revoke {
					return nil, false
				}
				for _, k := range r.config.Pool.Keys {
					if err := os.Remove(strings.TrimPrefix(string(k.Value), "file:")); err != nil {
						t.Fatal(err)
					}
				}
				return nil, true
			default:
				return nil, false
			}
		},
		Lost: func(t testing.TB) broker.Bundle {
			for name, id := range r.holders(t, ledger) {
				if c, err := ledger.Credential(t.Context(), id); err == nil && c.Version.Fingerprint == nil {
					return bundleOf(r.value(t, name))
				}
			}
			return broker.Bundle{}
		},
		Replace: func(t testing.TB, secret broker.Bundle) {
			for _, k := range r.config.Pool.Keys {
				if r.value(t, k.Name) == secret.Env["STRIPE_API_KEY"].Reveal() {
					r.rotate(t, k.Name, "customer_read")
					return
				}
			}
			t.Fatal("no such key")
		},
	}
}

// rotate is what an operator does about a key: a new one at its place, the old one expired in the dashboard.
func (r *poolRig) rotate(t testing.TB, name string, permissions ...string) {
	t.Helper()
	old := r.value(t, name)
	fresh := r.AddKey(sandbox.Key{Name: name, Secret: "rk_test_C4n4ryC4n4ry" + string(broker.NewVersionID()), Permissions: permissions})
	r.file(t, name, fresh)
	if err := r.ExpireKey(old); err != nil {
		t.Fatal(err)
	}
}
