package broker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// The contract's codes, as its document lists them. Callers branch on these: none may change or vanish.
var contract = map[int]string{
	http.StatusBadRequest:            "invalid_request",
	http.StatusUnauthorized:          "unauthenticated token_expired token_revoked",
	http.StatusForbidden:             "forbidden scope_not_allowed task_not_allowed",
	http.StatusNotFound:              "not_found",
	http.StatusMethodNotAllowed:      "method_not_allowed",
	http.StatusUnsupportedMediaType:  "unsupported_media_type",
	http.StatusConflict:              "conflict task_ended credential_ended",
	http.StatusGone:                  "ticket_redeemed ticket_expired",
	http.StatusRequestEntityTooLarge: "payload_too_large",
	http.StatusUnprocessableEntity:   "unknown_profile unknown_scope ttl_out_of_range idempotency_mismatch",
	http.StatusTooManyRequests:       "rate_limited quota_exceeded pool_exhausted upstream_throttled",
	http.StatusInternalServerError:   "record_tampered",
	http.StatusBadGateway:            "upstream_refused upstream_error",
	http.StatusServiceUnavailable:    "unavailable circuit_open",
	http.StatusGatewayTimeout:        "upstream_timeout",
}

func TestCodes(t *testing.T) {
	t.Parallel()
	listed := 0
	for status, codes := range contract {
		for code := range strings.FieldsSeq(codes) {
			listed++
			c := broker.Code(code)
			if !slices.Contains(broker.Codes(), c) || c.Status() != status {
				t.Errorf("%s answers %d, want %d", c, c.Status(), status)
			}
			// What a caller must change is not retryable; what time may mend is. An upstream's refusal is for its operator, and
			// an open circuit stays open for as long as its credential lives. A record that was tampered with stays so.
			want := status == http.StatusTooManyRequests || status >= 500 && code != "upstream_refused" && code != "circuit_open" && code != "record_tampered"
			if c.Retryable() != want {
				t.Errorf("%s is retryable: %v", c, c.Retryable())
			}
		}
	}
	if n := len(broker.Codes()); n != listed {
		t.Errorf("%d codes, the contract has %d", n, listed)
	}
	if c := broker.Code("none"); c.Status() != http.StatusServiceUnavailable || c.Retryable() {
		t.Error("an unknown code is not answered as unavailable")
	}
}

func TestAsError(t *testing.T) {
	t.Parallel()
	cause := errors.New("pq: password=" + planted)
	e := broker.AsError(fmt.Errorf("beginning: %w", cause))
	if e.Code != broker.CodeUnavailable || !errors.Is(e, cause) || leaks(e.Error()) {
		t.Errorf("a foreign error becomes %v", e)
	}
	if broker.AsError(nil) != nil {
		t.Error("no error becomes one")
	}
	own := broker.Errorf(broker.CodeConflict, "x").Because(context.Canceled)
	if got := broker.AsError(fmt.Errorf("wrapped: %w", own)); got != own || !errors.Is(got, context.Canceled) {
		t.Errorf("our own becomes %v", got)
	}
	if own.Error() != "conflict: x" {
		t.Errorf("it reads %q", own)
	}
}

func TestValidID(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "research-loop-2847", "A.b_c:d@e-9", "..a", strings.Repeat("x", 128)} {
		if !broker.ValidID(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{
		"", ".", "..", "...", " ", "a b", "a/b", "../a", "a/../*", "*", "a*", "a?", "${aws:username}", `a"b`, `"},{"`, "a'b", "a\\b", "a\x00b", "\n", "a\n",
		"ä", "\xff", "a%b", "a$b", "a{b}", "a|b", "a;b", "a,b", "a=b", "a+b", "a#b", "a&b", "<a>", strings.Repeat("x", 129),
	} {
		if broker.ValidID(bad) {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzValidID(f *testing.F) {
	alphabet := regexp.MustCompile(`\A\.*[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*\z`)
	for _, s := range []string{"a", "", "a/b", "é", "a\n", strings.Repeat("x", 129), "\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := broker.ValidID(s); got != (len(s) <= 128 && alphabet.MatchString(s)) {
			t.Errorf("%q: %v", s, got)
		}
	})
}

func TestCheckMetadata(t *testing.T) {
	t.Parallel()
	many := map[string]string{}
	for i := range 17 {
		many[name("k", i)] = "v"
	}
	for what, c := range map[string]struct {
		m    map[string]string
		want string
	}{
		"none":       {nil, ""},
		"good":       {map[string]string{"run": "42", "note": strings.Repeat("ü", 128)}, ""},
		"too many":   {many, "/metadata"},
		"key":        {map[string]string{"a b": "v"}, "/metadata"},
		"long key":   {map[string]string{strings.Repeat("k", 65): "v"}, "/metadata"},
		"empty key":  {map[string]string{"": "v"}, "/metadata"},
		"long value": {map[string]string{"k": strings.Repeat("ü", 129)}, "/metadata"}, // without the key: it is the client's own word
		"NUL":        {map[string]string{"k": "a\x00b"}, "/metadata"},                 // PostgreSQL's jsonb does not hold one
	} {
		faults := broker.CheckMetadata(c.m)
		if (len(faults) == 0) != (c.want == "") || len(faults) > 0 && faults[0].Pointer != c.want {
			t.Errorf("%s: %v, want %q", what, faults, c.want)
		}
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	forms := map[string]func() string{
		`crd_[0-9a-v]{26}`: func() string { return string(broker.NewCredentialID()) },
		`[a-z2-7]{16}`:     func() string { return string(broker.NewVersionID()) },
		`evt_[0-9a-v]{26}`: broker.NewEventID,
		`tok_[0-9a-v]{26}`: broker.NewTokenID,
	}
	for form, make := range forms {
		re := regexp.MustCompile(`\A` + form + `\z`)
		seen := map[string]bool{}
		for range 2000 {
			id := make()
			if !re.MatchString(id) || seen[id] || !broker.ValidID(id) {
				t.Fatalf("%s: %q (seen: %v)", form, id, seen[id])
			}
			seen[id] = true
		}
	}
	// Pages are cut by id, so ids sort by time.
	before := broker.NewCredentialID()
	for range 1000 {
		next := broker.NewCredentialID()
		if next <= before {
			t.Fatalf("%s comes after %s", next, before)
		}
		before = next
	}
}

func TestRef(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) broker.Ref {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return broker.Ref("file:" + path)
	}
	t.Setenv("TASKPASS_TEST_REF", " "+planted+"\n")
	for _, ref := range []broker.Ref{"env:TASKPASS_TEST_REF", write("good", "\n"+planted+"\r\n")} {
		if s, err := ref.Resolve(); err != nil || s.Reveal() != planted {
			t.Errorf("%s: %q, %v", ref, s.Reveal(), err)
		}
	}
	for _, bad := range []broker.Ref{"", planted, "env:", "file:", "file:relative", "http:" + planted, "ENV:HOME", ":" + planted} {
		if _, err := bad.Resolve(); err == nil || bad.Check() == nil || leaks(err.Error()) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, unreadable := range []broker.Ref{
		"env:TASKPASS_TEST_UNSET", write("empty", " \n"), broker.Ref("file:" + filepath.Join(dir, "none")),
		write("large", strings.Repeat("x", 64<<10+1)), broker.Ref("file:" + dir),
	} {
		if unreadable.Check() != nil {
			t.Errorf("%s: its form is good", unreadable)
		}
		if _, err := unreadable.Resolve(); err == nil || !strings.Contains(err.Error(), string(unreadable)) {
			t.Errorf("%s: %v", unreadable, err)
		}
	}
}

func TestParseRole(t *testing.T) {
	t.Parallel()
	for name, reads := range map[string]bool{"orchestrator": false, "auditor": true, "operator": true} {
		role, ok := broker.ParseRole(name)
		if !ok || (broker.Caller{Role: role}).ReadsAll() != reads {
			t.Errorf("%s: %v", name, ok)
		}
	}
	for _, bad := range []string{"", "admin", "Auditor", "auditor "} {
		if _, ok := broker.ParseRole(bad); ok {
			t.Errorf("%q is a role", bad)
		}
	}
	if (broker.Caller{}).ReadsAll() {
		t.Error("nobody reads all")
	}
}

func TestBundleFingerprint(t *testing.T) {
	t.Parallel()
	s := broker.NewSecret(planted)
	sum := s.Fingerprint()
	b := broker.Bundle{Primary: "key", Fields: map[string]broker.Secret{"key": s, "region": broker.NewSecret("eu")}}
	if string(b.Fingerprint()) != string(sum[:]) {
		t.Error("it is not the primary field's")
	}
}

func TestStateOfAVersionThatNobodyKnows(t *testing.T) {
	t.Parallel()
	if !broker.State("").Ended() && len(broker.State("").Next()) > 0 {
		t.Error("the empty state leads somewhere")
	}
	if broker.RefreshAfter(time.Time{}, time.Time{}) != (time.Time{}) {
		t.Error("nothing is refreshed at some time")
	}
}
