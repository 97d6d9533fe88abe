package pool_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/model"
)

// rig is a vendor of plain keys, and files in which an operator keeps some of them.
type rig struct {
	*model.Server
	url    string
	client *http.Client
	clock  *providertest.Clock
	name   string // the pool's
	dir    string

	mu     sync.Mutex
	keys   []pool.Key
	values map[string]string // by the key's name, as they are now
	spare  []string          // values that the vendor knows and no file holds
}

// newRig makes a pool of n keys, k0, k1, …
func newRig(t testing.TB, n int) *rig {
	t.Helper()
	r := &rig{
		clock: providertest.NewClock(), name: "pool-" + string(broker.NewVersionID()), dir: t.TempDir(), values: map[string]string{},
	}
	var keys []model.Key
	for i := range 2*n + 4 {
		secret := fmt.Sprintf("sk-C4n4ryC4n4ry-%d-%s", i, broker.NewVersionID()) // no error may show it
		keys = append(keys, model.Key{ID: fmt.Sprint(i), Secret: secret})
		r.spare = append(r.spare, secret)
	}
	server, err := model.New(model.Config{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server)
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		web.Close()
	})
	r.Server, r.url, r.client = server, web.URL, &http.Client{Transport: transport}
	for i := range n {
		r.add(t, fmt.Sprintf("k%d", i))
	}
	return r
}

// add brings a new key into the pool.
func (r *rig) add(t testing.TB, name string) {
	t.Helper()
	r.mu.Lock()
	r.keys = append(r.keys, pool.Key{Name: name, Value: broker.Ref("file:" + r.path(name))})
	r.mu.Unlock()
	r.write(t, name, r.fresh())
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// fresh is a value that the vendor accepts and nobody has.
func (r *rig) fresh() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	value := r.spare[0]
	r.spare = r.spare[1:]
	return value
}

// write puts a value into a key's file.
func (r *rig) write(t testing.TB, name, value string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values[name] = value
	providertest.WriteSecret(t, r.path(name), value+"\n")
}

// replace is what an operator does about a key: a new value at its source, the old one ended at the vendor.
func (r *rig) replace(t testing.TB, name string) {
	t.Helper()
	r.mu.Lock()
	old := r.values[name]
	r.mu.Unlock()
	r.write(t, name, r.fresh())
	if err := r.SetActive(old, false); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) config() pool.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return pool.Config{Name: r.name, Keys: append([]pool.Key(nil), r.keys...), Scopes: []string{"use"}, Disclosed: "accept"}
}

func (r *rig) provider(t testing.TB, ledger broker.Slots) *pool.Provider {
	t.Helper()
	return open(t, r.config(), ledger, r.clock.Now)
}

func open(t testing.TB, c pool.Config, ledger broker.Slots, clock func() time.Time) *pool.Provider {
	t.Helper()
	if faults := c.Check(); len(faults) > 0 {
		t.Fatalf("configuration: %v", faults)
	}
	p, err := pool.New(c, pool.Deps{Slots: ledger, Sealer: sealer, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (r *rig) credential(agent string) broker.Credential {
	id := string(broker.NewVersionID())
	if agent == "" {
		agent = "agent-" + id
	}
	return broker.Credential{TaskID: "task-" + id, AgentID: agent, Profile: "model", Provider: "pool", Scopes: []string{"use"}}
}

// take mints for an agent, for ttl, and records it.
func (r *rig) take(t testing.TB, p *pool.Provider, ledger *store.Store, agent string, ttl time.Duration) broker.Credential {
	t.Helper()
	c := providertest.Intend(t, ledger, p, r.credential(agent), r.clock.Now(), ttl)
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		t.Fatalf("agent %s: %v", agent, err)
	}
	return providertest.Activate(t, ledger, c, m)
}

// end ends a version for a cause and records it.
func (r *rig) end(t testing.TB, p *pool.Provider, ledger *store.Store, c broker.Credential, cause broker.Cause) broker.Revocation {
	t.Helper()
	c = providertest.Ask(t, ledger, c, cause)
	done, err := p.Revoke(t.Context(), c)
	if err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	providertest.Settle(t, ledger, c, done)
	return done
}

// key is the name of the key that a credential was given.
func key(c broker.Credential) string {
	_, name, _ := strings.Cut(c.Version.UpstreamIDs[0], "/")
	return name
}

// alive asks the vendor.
func (r *rig) alive(t testing.TB, _ broker.Credential, secret broker.Bundle) bool {
	t.Helper()
	in, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/messages",
		strings.NewReader(`{"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("X-Api-Key", secret.Env["API_KEY"].Reveal())
	out, err := r.client.Do(in)
	if err != nil {
		t.Fatal(err)
	}
	_ = out.Body.Close()
	switch out.StatusCode {
	case http.StatusOK:
		return true
	case http.StatusUnauthorized:
		return false
	}
	t.Fatalf("the vendor answers %s", out.Status)
	return false
}

// holders are the credentials that hold a key of the pool, by the key's name.
func (r *rig) holders(t testing.TB, ledger *store.Store) map[string]broker.CredentialID {
	t.Helper()
	rows, err := ledger.Pool().Query(t.Context(), "SELECT name, credential_id FROM slots WHERE pool = $1 AND credential_id IS NOT NULL", r.name)
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

// subject is the rig as the contract's suite wants it. The provider's upstream is the database of slots: its
// connection is what fails.
func (r *rig) subject(t testing.TB, ledger *store.Store) providertest.Subject {
	t.Helper()
	wire := newProxy(t, ledgerURL)
	return providertest.Subject{
		Provider: r.provider(t, openStore(t, wire.url)), Ledger: ledger, Clock: r.clock,
		Credential: func() broker.Credential { return r.credential("") },
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
		Fault: func(t testing.TB, at providertest.Operation, f providertest.Fault) (met <-chan struct{}, ok bool) {
			switch f {
			case providertest.LoseReply:
				return wire.loseReply(), true
			case providertest.Hang:
				return wire.hang(), true
			case providertest.Refuse:
				if at == providertest.Revoke {
					return nil, false
				}
				for _, k := range r.config().Keys {
					if err := os.Remove(r.path(k.Name)); err != nil {
						t.Fatal(err)
					}
				}
				return nil, true
			default:
				return nil, false
			}
		},
		Lost: func(t testing.TB) broker.Bundle {
			ids := r.holders(t, ledger)
			for name, id := range ids {
				if c, err := ledger.Credential(t.Context(), id); err == nil && c.Version.Fingerprint == nil {
					return broker.Bundle{Type: "api_key", Primary: "api_key", Env: map[string]broker.Secret{"API_KEY": broker.NewSecret(r.values[name])}}
				}
			}
			t.Logf("nobody holds what was lost; held: %v", ids)
			return broker.Bundle{}
		},
		Replace: func(t testing.TB, secret broker.Bundle) {
			for name, value := range r.values {
				if value == secret.Env["API_KEY"].Reveal() {
					r.replace(t, name)
					return
				}
			}
			t.Fatal("no such key")
		},
	}
}
