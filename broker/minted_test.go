package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// What an upstream made that is not what was asked for is never handed out: the request fails as retryable, and the
// version is ended.
func TestMintsThatLie(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	secret := func(value string) func(*broker.Minted) {
		return func(m *broker.Minted) { m.Secret.Fields["key"] = broker.NewSecret(value) }
	}
	ends := func(in time.Duration) func(*broker.Minted) {
		return func(m *broker.Minted) { m.UpstreamExpiresAt = h.clock.Now().Add(in) }
	}
	id := func(ids ...string) func(*broker.Minted) {
		return func(m *broker.Minted) { m.UpstreamIDs = ids }
	}
	for i, c := range []struct {
		name string
		lie  func(*broker.Minted)
	}{
		{"no end", func(m *broker.Minted) { m.UpstreamExpiresAt = time.Time{} }},
		{"an end an hour ago", ends(-time.Hour)},
		{"an end at the epoch", func(m *broker.Minted) { m.UpstreamExpiresAt = time.Unix(0, 0) }},
		{"an end in 5 s", ends(5 * time.Second)},
		{"an end 2 min too early", ends(58 * time.Minute)},
		{"an end in 9999", func(m *broker.Minted) { m.UpstreamExpiresAt = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }},
		{"no secret", secret("")},
		{"white space before it", secret(" value")},
		{"a line break after it", secret("value\n")},
		{"CR LF in it", secret("va\r\nlue")},
		{"a NUL in it", secret("va\x00lue")},
		{"a BOM before it", secret("\ufeffvalue")},
		{"Latin-1", secret("val\xfce")},
		{"5 MiB of it", secret(strings.Repeat("a", 5<<20))},
		{"an empty variable", func(m *broker.Minted) { m.Secret.Env["VENDOR_KEY"] = broker.NewSecret("") }},
		{"an empty id", id("")},
		{"an id with a line break", id("key\n1")},
		{"an id of 5 KiB", id(strings.Repeat("a", 5<<10))},
		{"a trace of 5 MiB", func(m *broker.Minted) { m.Trace["request_id"] = strings.Repeat("a", 5<<20) }},
	} {
		task := fmt.Sprintf("lie-%d", i)
		h.vendor.setLie(c.lie)
		issued, err := h.Issue(t.Context(), orchestrator, ask(task), "")
		if codeOf(err) != broker.CodeUpstreamError || len(issued.Secret.Fields) > 0 {
			t.Errorf("%s: answered %v; want %s", c.name, err, broker.CodeUpstreamError)
			continue
		}
		h.sweep()
		if v := h.only(task).Version; v.State != broker.StateRevoked || h.vendor.revocations(v.ID) != 1 {
			t.Errorf("%s: %s, %d revocations; want it ended", c.name, v.State, h.vendor.revocations(v.ID))
		}
	}
	h.vendor.setLie(ends(59*time.Minute + 30*time.Second)) // clocks differ
	h.issue("honest")
}

// An upstream that gives the same id twice, at once or one after the other, has one credential at most active by it.
func TestMintOfAKnownID(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.setLie(func(m *broker.Minted) { m.UpstreamIDs = []string{"AKIATWICE", "more"} })
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { _, errs[i] = h.Issue(t.Context(), orchestrator, ask(fmt.Sprintf("twice-%d", i)), "") })
	}
	wg.Wait()
	active := 0
	for _, err := range errs {
		switch {
		case err == nil:
			active++
		case codeOf(err) != broker.CodeUpstreamError:
			t.Errorf("answered %v; want %s", err, broker.CodeUpstreamError)
		}
	}
	if active != 1 {
		t.Errorf("%d of 16 are active by one id", active)
	}
	h.sweep()
	if alive := h.vendor.living(); len(alive) != 1 {
		t.Errorf("%d are alive upstream; want the rest ended", len(alive))
	}
	h.vendor.setLie(func(m *broker.Minted) { m.UpstreamIDs, m.OwnID = []string{"shared@account"}, false })
	h.issue("shared-1")
	h.issue("shared-2")
}

func (v *vendor) setLie(lie func(*broker.Minted)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lie = lie
}

var refusal = broker.VendorAnswer{Vendor: "Vendor", Action: "EndKey", Status: 409, Code: "ConcurrentModification", RequestID: "req-42"}

// Whatever fails by a vendor's answer, the log has that answer's five fields.
func TestVendorAnswersAreLogged(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	h := newHouse(t, func(cfg *broker.Config) { cfg.Logger = slog.New(slog.NewJSONHandler(&logged, nil)) })
	wants := func(message string) {
		t.Helper()
		const fields = `"vendor":{"name":"Vendor","action":"EndKey","status":409,"code":"ConcurrentModification","request_id":"req-42"}`
		for line := range strings.Lines(logged.String()) {
			if strings.Contains(line, message) && strings.Contains(line, fields) {
				return
			}
		}
		t.Errorf("no %q with the vendor's answer in %s", message, logged.String())
	}
	fails := broker.Errorf(broker.CodeUpstreamError, "the vendor is busy").Because(fmt.Errorf("in between: %w", refusal))
	issued := h.issue("t")
	h.vendor.behave(func(context.Context, broker.Credential, func()) error { return fails },
		func(context.Context, broker.Credential) (broker.Revocation, error) { return broker.Revocation{}, fails })
	if _, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil {
		t.Fatal(err)
	}
	wants("version not ended")
	if _, err := h.Issue(t.Context(), orchestrator, ask("t2"), ""); codeOf(err) != broker.CodeUpstreamError {
		t.Fatal(err)
	}
	wants("mint failed")
}

func TestVendorAnswers(t *testing.T) {
	t.Parallel()
	other := refusal
	other.RequestID = "req-43"
	e := broker.Errorf(broker.CodeUpstreamError, "x").Because(errors.Join(refusal, fmt.Errorf("x: %w", other), refusal))
	if got := broker.VendorAnswers(e); len(got) != 2 || got[0] != refusal || got[1] != other {
		t.Errorf("found %v", got)
	}
	var many []error
	for i := range 100 {
		many = append(many, broker.VendorAnswer{Vendor: "Vendor", Action: fmt.Sprint(i)})
	}
	if got := broker.VendorAnswers(errors.Join(many...)); len(got) != 8 {
		t.Errorf("%d answers of one error; want 8 at most", len(got))
	}
}
