//go:build peers

package stripe_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/stripe"
)

// stripeMock is Stripe's own: it knows every v1 call and holds each request against Stripe's OpenAPI description.
const stripeMock = "github.com/stripe/stripe-mock@v0.203.0"

var mockAddress = regexp.MustCompile(`Listening for HTTP at address: (127\.0\.0\.1:\d+)`)

// startMock builds and runs it, and gives its address.
func startMock(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "install", stripeMock)
	build.Env = append(build.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mock := exec.CommandContext(t.Context(), filepath.Join(dir, "stripe-mock"), "-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0")
	out, err := mock.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := mock.Start(); err != nil {
		t.Fatal(err)
	}
	address, drained := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(drained)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if found := mockAddress.FindStringSubmatch(lines.Text()); found != nil {
				address <- found[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = mock.Process.Kill()
		<-drained
		_ = mock.Wait()
	})
	timer := time.NewTimer(2 * time.Minute)
	defer timer.Stop()
	select {
	case a := <-address:
		return a
	case <-timer.C:
		t.Fatal("stripe-mock does not say where it listens")
		return ""
	}
}

// recorder passes everything on to stripe-mock and remembers what it answered. Its fixtures leave out what is random, such
// as an ephemeral key's secret: that is added.
type recorder struct {
	mu      sync.Mutex
	answers map[string]int // "GET /v1/customers" → status
}

func (r *recorder) edit(res *http.Response) error {
	call := res.Request.Method + " " + res.Request.URL.Path
	r.mu.Lock()
	r.answers[call] = res.StatusCode
	r.mu.Unlock()
	if call != "POST /v1/ephemeral_keys" || res.StatusCode != http.StatusOK {
		return nil
	}
	var body map[string]any
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		return err
	}
	body["secret"], body["expires"] = "ek_test_C4n4ryC4n4ryC4n4ry", time.Now().Add(time.Hour).Unix()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	res.Header.Del("Content-Length")
	return nil
}

// TestPeersStripeMock holds the calls that are made against Stripe's own description of them: that they exist, and that
// Stripe takes their parameters. stripe-mock knows no permissions and keeps nothing, so what they do is the stand-in's to
// show.
func TestPeersStripeMock(t *testing.T) {
	mock := &url.URL{Scheme: "http", Host: startMock(t)}
	seen := &recorder{answers: map[string]int{}}
	proxy := httputil.NewSingleHostReverseProxy(mock)
	transport := &http.Transport{}
	proxy.Transport, proxy.ModifyResponse = transport, seen.edit
	web := httptest.NewServer(proxy)
	t.Cleanup(func() {
		web.Close()
		transport.CloseIdleConnections()
	})

	t.Run("ephemeral", func(t *testing.T) {
		for kind, id := range map[string]string{"customer": "cus_1", "issuing_card": "ic_1", "verification_session": "vs_1"} {
			r := newEphemeral(t)
			r.clock.To(time.Now())
			r.config.Endpoint, r.config.SecretKey = web.URL, r.file(t, "rk", "rk_test_C4n4ryC4n4ryC4n4ry")
			r.config.Ephemeral.For = kind
			p := r.open(t, nil)
			c := r.intended(p, time.Minute, "wallet")
			c.Metadata = map[string]string{"customer": id}
			c, _ = r.mint(t, p, c)
			if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed || done.Basis != "deleted" {
				t.Errorf("%s: %+v, %v", kind, done, err)
			}
		}
	})

	t.Run("every read that tells a permission exists", func(t *testing.T) {
		ledger := replicas(t, 1)[0]
		r := newPool(t, 0)
		r.config.Endpoint = web.URL
		var reads []string
		for _, name := range stripe.Probed() {
			if strings.HasSuffix(name, "_read") {
				reads = append(reads, name)
			}
		}
		r.register(t, "k", "rk_test_C4n4ryC4n4ryC4n4ry", reads...)
		r.config.Scopes = map[string]stripe.Scope{"all": {Permissions: reads}}
		_, m := r.mustLend(t, r.open(t, ledger), ledger, "all")
		if m.Trace["unverified"] != "" || len(reads) < 20 {
			t.Errorf("of %d: not to be read: %s", len(reads), m.Trace["unverified"])
		}
	})

	t.Run("every write that tells a permission exists, and refuses a parameter that does not", func(t *testing.T) {
		ledger := replicas(t, 1)[0]
		r := newPool(t, 0)
		r.config.Endpoint, r.config.Pool.ProbeWrites = web.URL, "accept"
		var writes []string
		for _, name := range stripe.Probed() {
			if strings.HasSuffix(name, "_write") {
				writes = append(writes, name)
			}
		}
		// stripe-mock lets everybody read everything.
		r.register(t, "k", "rk_test_C4n4ryC4n4ryC4n4ryToo", writes...)
		r.config.Pool.Undeclared = "accept"
		r.config.Scopes = map[string]stripe.Scope{"all": {Permissions: writes}}
		r.mustLend(t, r.open(t, ledger), ledger, "all")
		seen.mu.Lock()
		defer seen.mu.Unlock()
		posts := 0
		for call, status := range seen.answers {
			if !strings.HasPrefix(call, "POST") || call == "POST /v1/ephemeral_keys" {
				continue
			}
			if posts++; status != http.StatusBadRequest {
				t.Errorf("%s: %d", call, status)
			}
		}
		if posts != len(writes) {
			t.Errorf("%d of %d writes were tried", posts, len(writes))
		}
	})
}
