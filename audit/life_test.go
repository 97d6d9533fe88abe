package audit_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// A version is said to be dead from the moment that its end is certain, which is after what its provider's lag says, and
// never before: a trace that says so five minutes early calls a working key dead.
func TestDeadFromItsEndOn(t *testing.T) {
	t.Parallel()
	issued := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	expires := issued.Add(time.Hour)
	written, lag := issued.Add(10*time.Minute), time.Minute // when the denial was written, and what the provider says of it
	denied := broker.Revocation{Result: broker.ResultDenied, EffectiveAt: written.Add(lag), Basis: "policy_written"}
	for _, c := range []struct {
		name   string
		v      broker.Version
		end    time.Time
		before audit.Life
		how    string
	}{
		{"active, and ends by itself", broker.Version{State: broker.StateActive, SelfExpires: true}, expires, audit.Life{Alive: "yes", Until: &expires, How: "active"}, "self_expires"},
		{"stuck, and ends by itself", broker.Version{State: broker.StateStuck, SelfExpires: true}, expires, audit.Life{Alive: "maybe", Until: &expires, How: "stuck"}, "self_expires"},
		{"lost, and ends by itself", broker.Version{State: broker.StateLost, SelfExpires: true}, expires, audit.Life{Alive: "maybe", Until: &expires, How: "lost"}, "self_expires"},
		{"expired by itself, with the upstream's lag", broker.Version{State: broker.StateExpired, SelfExpires: true,
			Revocation: broker.Revocation{Result: broker.ResultExpires, EffectiveAt: expires.Add(lag), Basis: "self_expires"}},
			expires.Add(lag), audit.Life{Alive: "maybe", Until: new(expires.Add(lag)), How: "self_expires"}, "self_expires"},
		{"being denied", broker.Version{State: broker.StateRevoking, SelfExpires: true, Revocation: denied}, denied.EffectiveAt,
			audit.Life{Alive: "maybe", Until: &denied.EffectiveAt, How: "policy_written"}, "policy_written"},
		{"denied", broker.Version{State: broker.StateRevoked, SelfExpires: true, Revocation: denied}, denied.EffectiveAt,
			audit.Life{Alive: "maybe", Until: &denied.EffectiveAt, How: "policy_written"}, "policy_written"},
	} {
		c.v.IssuedAt, c.v.ExpiresAt = issued, expires
		for _, early := range []time.Duration{5 * time.Minute, lag, time.Nanosecond} {
			same(t, c.name+", "+early.String()+" before", audit.LifeOf(c.v, c.end.Add(-early)), c.before)
		}
		for _, late := range []time.Duration{0, time.Nanosecond, 5 * time.Minute} {
			same(t, c.name+", "+late.String()+" after", audit.LifeOf(c.v, c.end.Add(late)), audit.Life{Alive: "no", Since: &c.end, How: c.how})
		}
	}
}

func same(t *testing.T, what string, got, want audit.Life) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", what, diff)
	}
}

// What somebody gives is looked for as what they mean: a fingerprint in whatever case, and never by the name of one.
func TestParseFingerprint(t *testing.T) {
	t.Parallel()
	sum := bytes.Repeat([]byte{0xab}, 32)
	hex := strings.Repeat("ab", 32)
	for _, text := range []string{"sha256:" + hex, "SHA256:" + strings.ToUpper(hex), hex} {
		if got, err := audit.ParseFingerprint(text); err != nil || !bytes.Equal(got, sum) {
			t.Errorf("%s: %x, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "sha256:", "sha256:" + hex[2:], "sha256:" + hex + "ab", "sha256:" + strings.Repeat("x", 64), "sha512:" + hex} {
		if got, err := audit.ParseFingerprint(text); err == nil || got != nil {
			t.Errorf("%s: %x", text, got)
		}
	}
	if q, err := audit.TraceOf("Sha256:" + hex); err != nil || q.Name != "" || !bytes.Equal(q.Fingerprint, sum) {
		t.Errorf("%+v, %v", q, err)
	}
	if q, err := audit.TraceOf(hex); err != nil || q.Name != hex || q.Fingerprint != nil {
		t.Errorf("%+v, %v", q, err)
	}
	if q, err := audit.TraceOf("sha256:zz"); err == nil || q.Name != "" {
		t.Errorf("%+v, %v", q, err)
	}
}
