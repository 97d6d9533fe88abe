package openapi_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// program is an optional program's path; the test is skipped where it is absent, except in CI, where `.ci/setup clients`
// installed it.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lacks(t, name)
	}
	return path
}

func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("there is no %s: run .ci/setup clients", what)
	}
	t.Skipf("there is no %s: run .ci/setup clients", what)
}

// run is what a program writes to its standard output and error, and its exit code.
func run(t *testing.T, env []string, name string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok || ctx.Err() != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// urllib sends a request as any Python program would: the whole body first, and then it reads the answer.
const urllib = `
import sys, urllib.request, urllib.error
url, method, token, kind, size = sys.argv[1:]
body = b" " * int(size)
if kind == "chunked": kind, body = "application/json", iter([b" " * 1000] * (int(size) // 1000))
request = urllib.request.Request(url, data=body, method=method)
if token: request.add_header("Authorization", "Bearer " + token)
if kind: request.add_header("Content-Type", kind)
try:
    with urllib.request.urlopen(request, timeout=60) as answer: print(answer.status)
except urllib.error.HTTPError as e:
    print(e.code, e.read().decode())
`

// early is an answer that needs no body.
type early struct {
	at               *api
	as, method, path string
	kind             string // Content-Type
	code             broker.Code
}

func earlyAnswers(a, full *api) map[string]early {
	const json = "application/json"
	id := a.issue("t").ID
	return map[string]early{
		"401":        {a, "", "POST", "/v1/credentials", json, broker.CodeUnauthenticated},
		"404":        {a, "orch", "POST", "/v1/nothing", json, broker.CodeNotFound},
		"405":        {a, "orch", "PUT", "/v1/credentials", json, broker.CodeMethodNotAllowed},
		"413":        {a, "orch", "POST", "/v1/credentials", json, broker.CodePayloadTooLarge},
		"413, text":  {a, "orch", "POST", "/v1/credentials", "text/plain", broker.CodePayloadTooLarge},
		"413, GET":   {a, "orch", "GET", "/v1/profiles", json, broker.CodePayloadTooLarge},
		"413, other": {a, "other", "POST", "/v1/credentials/" + id + "/resolve", json, broker.CodePayloadTooLarge},
		"413, open":  {a, "", "POST", "/v1/tickets/redeem", json, broker.CodePayloadTooLarge},
		"429":        {full, "orch", "POST", "/v1/credentials", json, broker.CodeRateLimited},
	}
}

// Once a body over the limit, or one whose sender was refused for another reason, ended in a reset for clients that send
// all of it before they read.
func TestEarlyAnswersReachClients(t *testing.T) {
	t.Parallel()
	python, curl, wget := program(t, "python3"), program(t, "curl"), program(t, "wget")
	a, full := newAPI(t), busy(t)
	big := filepath.Join(t.TempDir(), "big")
	const size = 3 << 20
	if err := os.WriteFile(big, []byte(strings.Repeat(" ", size)), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range earlyAnswers(a, full) {
		url, token := c.at.url+c.path, ""
		if c.as != "" {
			token = c.at.tokens[c.as]
		}
		check := func(client, out string) {
			if !strings.Contains(out, `"code":"`+string(c.code)+`"`) {
				t.Errorf("%s, %s: %.300s", what, client, out)
			}
		}
		out, _ := run(t, os.Environ(), python, "-c", urllib, url, c.method, token, c.kind, strconv.Itoa(size))
		check("urllib", out)
		if c.kind == "application/json" {
			out, _ = run(t, os.Environ(), python, "-c", urllib, url, c.method, token, "chunked", strconv.Itoa(size))
			if c.path != "/v1/profiles" && !strings.HasSuffix(c.path, "/resolve") { // which have no body in the contract
				check("urllib in chunks", out)
			}
		}
		for _, expect := range []string{"Expect: 100-continue", "Expect:"} {
			out, code := run(t, os.Environ(), curl, "-sS", "-X", c.method, "-H", "Authorization: Bearer "+token, "-H", "Content-Type: "+c.kind,
				"-H", expect, "--data-binary", "@"+big, url)
			check("curl with "+expect, out)
			if code != 0 {
				t.Errorf("%s, curl with %s: exit code %d: %.300s", what, expect, code, out)
			}
		}
		out, code := run(t, os.Environ(), wget, "-q", "-O", "-", "--tries=1", "--content-on-error", "--method="+c.method, "--body-file="+big,
			"--header=Authorization: Bearer "+token, "--header=Content-Type: "+c.kind, url)
		if c.code != broker.CodeUnauthenticated {
			check("wget", out)
		} else if code != 6 { // of an authentication that failed; wget never shows the answer to one
			t.Errorf("%s, wget: exit code %d: %.300s", what, code, out)
		}
	}
	if n := a.limits.Requests.Open(); n != 0 {
		t.Errorf("%d requests are open at the end", n)
	}
}

// A small body that is refused by its header: with Python, whose http.client sends header and body apart.
func TestEarlyAnswersToSmallBodies(t *testing.T) {
	t.Parallel()
	python := program(t, "python3")
	a := newAPI(t)
	for what, c := range map[string][3]string{
		"unauthenticated": {"", "application/json", "100"}, "unsupported_media_type": {"orch", "text/plain", "60000"},
	} {
		token := ""
		if c[0] != "" {
			token = a.tokens[c[0]]
		}
		out, _ := run(t, os.Environ(), python, "-c", urllib, a.url+"/v1/credentials", "POST", token, c[1], c[2])
		if !strings.Contains(out, `"code":"`+what+`"`) {
			t.Errorf("%s: %.300s", what, out)
		}
	}
}

// busy is an API of which the caller "orch" has all of its share of requests open.
func busy(t *testing.T) *api {
	t.Helper()
	few := broker.Bounds{PerToken: 1, PerCaller: 2, Total: 4}
	a := newAPI(t, func(_ *api, s *setup) {
		s.openapi.Limits = broker.NewConcurrency(broker.ConcurrencyBounds{Requests: few})
	})
	caller, err := a.callers.Authenticate(t.Context(), a.tokens["orch"])
	if err != nil {
		t.Fatal(err)
	}
	release, err := a.limits.Requests.Acquire(caller)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return a
}

// dial sends a request's header by hand, and reads the answer's.
func (a *api) dial(header string) (net.Conn, *http.Response) {
	a.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(a.t.Context(), "tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		a.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, header); err != nil {
		a.t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		a.t.Fatalf("%.40q: %v", header, err)
	}
	a.t.Cleanup(func() { _ = response.Body.Close() })
	return conn, response
}

// The answer comes before a byte of the body is sent, and no "100 Continue" before it or after it.
func TestRefusedBeforeTheBody(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for status, c := range map[int][2]string{
		http.StatusRequestEntityTooLarge: {a.tokens["orch"], "application/json"}, http.StatusUnauthorized: {"x", "application/json"},
	} {
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			conn, response := a.dial(fmt.Sprintf("POST /v1/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\n"+
				"Content-Length: 9000000\r\n%s\r\n", c[0], c[1], expect))
			if response.StatusCode != status {
				t.Errorf("%q: %d, want %d", expect, response.StatusCode, status)
			}
			body, err := io.ReadAll(response.Body)
			if err != nil || !strings.Contains(string(body), `"code"`) {
				t.Errorf("%v: %s", err, body)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("after the answer: %v: %q", err, rest)
			}
		}
	}
}

// Who is answered and goes on sending is counted: the caller's share of such connections is bounded, and a connection above
// it is closed at once. Another caller is not affected.
func TestDrainingIsBounded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	header := func(as string) string {
		return fmt.Sprintf("POST /v1/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 9000000\r\n\r\n ", a.tokens[as])
	}
	const share = 64
	for i := range share {
		if _, response := a.dial(header("orch")); response.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatalf("%d: %d", i, response.StatusCode)
		}
	}
	eventually(t, "one more is closed at once", func() bool {
		conn, _ := a.dial(header("orch"))
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := io.Copy(io.Discard, conn)
		return !errors.Is(err, os.ErrDeadlineExceeded)
	})
	other, _ := a.dial(header("other"))
	if _, err := io.WriteString(other, strings.Repeat(" ", 9_000_000-1)); err != nil {
		t.Errorf("another caller's body: %v", err)
	}
	a.issue("t")
}

// Probes of load balancers ask with HEAD, and wget --spider does.
func TestHead(t *testing.T) {
	t.Parallel()
	curl, wget := program(t, "curl"), program(t, "wget")
	a := newAPI(t)
	a.issue("t")
	for _, path := range []string{"/livez", "/readyz", "/openapi.yaml", "/openapi.json", "/metrics"} {
		if out, code := run(t, os.Environ(), curl, "-sS", "-I", a.url+path); code != 0 || !strings.HasPrefix(out, "HTTP/1.1 200 ") {
			t.Errorf("curl -I %s: exit code %d: %s", path, code, out)
		}
		if out, code := run(t, os.Environ(), wget, "-q", "--tries=1", "--spider", a.url+path); code != 0 {
			t.Errorf("wget --spider %s: exit code %d: %s", path, code, out)
		}
	}
	for path, as := range map[string]string{
		"/v1/profiles": "orch", "/v1/credentials?task_id=t": "orch", "/v1/tasks/t": "orch", "/v1/audit/events": "aud", "/v1/pools/models/keys": "ops",
	} {
		for _, accept := range []string{"", "text/csv"} {
			get, head := a.call(as, "GET", path, "", "Accept", accept), a.call(as, "HEAD", path, "", "Accept", accept)
			if head.status != http.StatusOK || head.body != "" || head.header.Get("Content-Type") != get.header.Get("Content-Type") {
				t.Errorf("HEAD %s: %d %q %s", path, head.status, head.body, head.header)
			}
		}
	}
	if got := a.call("", "HEAD", "/v1/profiles", ""); got.status != http.StatusUnauthorized {
		t.Errorf("HEAD without a token: %d", got.status)
	}
	if got := a.call("orch", "HEAD", "/v1/credentials/x/revoke", ""); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "POST" {
		t.Errorf("HEAD of a POST: %d %v", got.status, got.header)
	}
}
