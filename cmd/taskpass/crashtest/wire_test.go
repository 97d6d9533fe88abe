package crashtest

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/taskpass/taskpass/openapi/client"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// wire is a TCP connection between the broker and something else, that can be spoilt and cut.
type wire struct {
	t *testing.T
	*toxiproxy.Proxy
}

func newWire(t *testing.T, name, upstream string) *wire {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w := &wire{t, toxiproxy.NewProxy(server, name, freeAddress(t), upstream)}
	w.mend()
	t.Cleanup(w.Stop)
	return w
}

// mend lets connections pass again after Stop.
func (w *wire) mend() {
	w.t.Helper()
	if err := w.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// spoil adds a fault to what is connected, and to what will be.
func (w *wire) spoil(f fault) {
	w.t.Helper()
	text, err := json.Marshal(map[string]any{
		"name": "fault", "type": f.kind, "stream": "downstream", "toxicity": 1, "attributes": f.attributes,
	})
	if err == nil {
		_, err = w.Toxics.AddToxicJson(strings.NewReader(string(text)))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// heal ends all faults. What is connected may stay spoilt, so it is cut.
func (w *wire) heal() {
	w.t.Helper()
	w.Stop()
	w.Toxics.ResetToxics(w.t.Context())
	w.mend()
}

// wireDatabase puts a wire before the database, for replicas that are started from now on.
func (r *rig) wireDatabase() *wire {
	r.t.Helper()
	cfg, err := pgconn.ParseConfig(r.settings.DatabaseURL)
	if err != nil {
		r.t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	if network == "unix" {
		address = relay(r.t, network, address)
	}
	w := newWire(r.t, "postgres", address)
	u := url.URL{Scheme: "postgres", Host: w.Listen, Path: "/" + cfg.Database, RawQuery: "sslmode=disable"}
	u.User = url.User(cfg.User)
	if cfg.Password != "" {
		u.User = url.UserPassword(cfg.User, cfg.Password)
	}
	r.settings.DatabaseURL = u.String()
	return w
}

// wireAWS puts a wire before the upstream, for replicas that are started from now on.
func (r *rig) wireAWS() *wire {
	r.t.Helper()
	w := newWire(r.t, "aws", strings.TrimPrefix(r.awsURL, "http://"))
	r.settings.AWS = "http://" + w.Listen
	return w
}

// relay lets TCP into a unix socket: toxiproxy knows only TCP.
func relay(t *testing.T, network, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial(network, address)
				if err != nil {
					return
				}
				defer out.Close()
				ended := make(chan struct{}, 2)
				wg.Go(func() { _, _ = io.Copy(out, in); ended <- struct{}{} })
				wg.Go(func() { _, _ = io.Copy(in, out); ended <- struct{}{} })
				select { // one end closed is both closed
				case <-ended:
				case <-ctx.Done():
				}
			})
		}
	})
	return l.Addr().String()
}

type fault struct {
	kind       string
	attributes map[string]int
}

// faults befall what the broker is answered; limit_data and timeout let the request pass and lose the reply.
var faults = map[string]fault{
	"latency":       {"latency", map[string]int{"latency": 60, "jitter": 40}},
	"reset":         {"reset_peer", map[string]int{"timeout": 0}},
	"reset later":   {"reset_peer", map[string]int{"timeout": 150}},
	"reply cut off": {"timeout", map[string]int{"timeout": 100}},
	"no reply":      {"timeout", map[string]int{"timeout": 2500}},
	"slow close":    {"slow_close", map[string]int{"delay": 300}},
	"cut mid-reply": {"limit_data", map[string]int{"bytes": 1200}},
	"cut later":     {"limit_data", map[string]int{"bytes": 3500}},
	"bandwidth":     {"bandwidth", map[string]int{"rate": 8}},
}

// Every call under every fault is answered in the contract's form, and afterwards every promise holds.
func TestFaultsOnTheWire(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"postgres", "aws"} {
		for name, f := range faults {
			usual := slices.Contains([]string{"reset", "no reply", "cut mid-reply"}, name) // all of them by make test-long
			if !usual && !long || testing.Short() && (to != "aws" || name != "cut mid-reply") {
				continue
			}
			t.Run(to+"/"+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				if to == "postgres" {
					r.underFault(r.wireDatabase(), f, "unavailable", "credential_ended")
				} else {
					r.underFault(r.wireAWS(), f, "upstream_error", "upstream_timeout")
				}
			})
		}
	}
}

// underFault makes every kind of call at once under a fault; codes are those that a call may fail with.
func (r *rig) underFault(w *wire, f fault, codes ...string) {
	r.t.Helper()
	p := r.start("")
	var ids []string
	for _, name := range []string{"refreshed", "resolved", "revoked", "ended"} {
		ids = append(ids, r.issued(p, "task-"+name, "key-"+name))
	}
	body := awsRequest("task-ticket")
	body.Delivery = client.IssueRequestDeliveryTicket
	if a := p.issue(body, "key-ticket"); !a.ok() {
		r.t.Fatal(a)
	}
	ticket := r.book.takeTicket()
	r.book.note(func() {
		r.book.touched[ids[0]], r.book.touched[ids[2]], r.book.touched[ids[3]] = "refresh", "revoke", "end task"
	})
	calls := map[string]func() answer{
		"issue":         func() answer { return p.issue(awsRequest("task-1"), "") },
		"issue by key":  func() answer { return p.issue(awsRequest("task-2"), "key-2") },
		"issue pool":    func() answer { return p.issue(poolRequest("task-3"), "key-3") },
		"issue several": func() answer { return p.issueSeveral("task-4") },
		"refresh":       func() answer { return p.refresh(ids[0], "") },
		"resolve":       func() answer { return p.resolve(ids[1], "task-resolved") },
		"revoke":        func() answer { return p.revoke(ids[2]) },
		"end":           func() answer { return p.endTask("task-ended") },
		"redeem":        func() answer { return p.redeem(ticket) },
	}
	w.spoil(f)
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			start := time.Now()
			a := call()
			if !a.ok() && !slices.Contains(codes, a.code) { // no answer is wrong too: the wire to the broker is whole
				r.t.Errorf("%s: %s after %s, want success or one of %q", name, a, time.Since(start), codes)
			}
		})
	}
	wg.Wait()
	w.heal()
	p.awaitReady()
	r.aftermath(p)
}

// Without a database nothing is asked of the upstream, and the answer says so.
func TestDatabaseDownAtIssue(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.wireDatabase()
	p := r.start("")
	w.Stop()
	if a := p.issue(awsRequest("task"), "key"); a.code != "unavailable" {
		t.Errorf("answered %s, want unavailable", a)
	}
	w.mend()
	p.awaitReady()
	// Now only the intent cannot be written.
	r.exec("REVOKE INSERT ON credentials FROM taskpass_service")
	if a := p.issue(awsRequest("task"), "key"); a.code != "unavailable" {
		t.Errorf("answered %s, want unavailable", a)
	}
	if n := r.aws.AssumeRoleCalls(); n != 0 {
		t.Errorf("the upstream was asked %d times before anything was on the ledger", n)
	}
	r.exec("GRANT INSERT ON credentials TO taskpass_service")
	if a := p.issue(awsRequest("task"), "key"); !a.ok() {
		t.Errorf("the database is back, and the answer is %s", a)
	}
	r.aftermath(p)
}

// The database is cut off after the intent: what the upstream made is given to nobody, and is denied later.
func TestDatabaseCutBetweenIntentAndOutcome(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.wireDatabase()
	p := r.start("")
	reply := make(chan struct{})
	r.aws.Inject(sandbox.Fault{Action: "AssumeRole", Kind: sandbox.SlowReply, Until: reply})
	issued := aside(func() answer { return p.issue(awsRequest("task"), "") })
	r.eventually("the upstream was asked", func() bool { return len(r.aws.Sessions()) == 1 })
	w.Stop()
	close(reply)
	if a := <-issued; a.code != "unavailable" {
		t.Errorf("answered %s, want unavailable", a)
	}
	if n := len(r.book.grants); n != 0 {
		t.Errorf("%d secrets were handed out", n)
	}
	w.mend()
	r.settle()
	if n := r.count("SELECT count(*) FROM versions WHERE state = 'revoked' AND cause = 'abandoned' AND result = 'denied'"); n != 1 {
		t.Error("what nobody was given is not revoked")
	}
	r.mustHold()
}

// The outcome is committed, but the database is cut off before it can say so: nobody is given the secret, until somebody
// asks by the key.
func TestOutcomeCommittedUnseen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.wireDatabase()
	p := r.start("")
	issued, release := r.heldActivation(func() answer { return p.issue(awsRequest("task"), "key") })
	w.Stop()
	if a := <-issued; a.code != "unavailable" {
		t.Errorf("answered %s, want unavailable", a)
	}
	release()
	r.eventually("the outcome is committed", func() bool {
		return r.count("SELECT count(*) FROM versions WHERE state = 'active'") == 1
	})
	if n := len(r.book.grants); n != 0 {
		t.Errorf("%d secrets were handed out", n)
	}
	w.mend()
	p.awaitReady()
	r.aftermath(p)
	if n := len(r.book.grants); n == 0 {
		t.Error("the key got nothing when it was asked by again")
	}
}

// The upstream's reply is lost: the version is lost, and then denied.
func TestLostReply(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	r.aws.Inject(sandbox.Fault{Action: "AssumeRole", Kind: sandbox.DropReply})
	if a := p.issue(awsRequest("task"), "key"); a.code != "upstream_error" {
		t.Errorf("answered %s, want upstream_error", a)
	}
	if n := len(r.aws.Sessions()); n != 1 {
		t.Fatalf("the upstream has %d sessions, want the one that was lost", n)
	}
	r.settle()
	if n := r.count("SELECT count(*) FROM versions WHERE state = 'revoked' AND cause = 'abandoned' AND result = 'denied'"); n != 1 {
		t.Error("what was lost is not revoked")
	}
	r.aftermath(p) // asks by the key again, and gets the next version
	if n := len(r.book.grants); n == 0 {
		t.Error("the key got nothing when it was asked by again")
	}
}
