package broker_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
)

// A secret that nothing ends is refused, unless the operator says that agents may keep what they have seen.
func TestUndisclosedProfileIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	eternal := newVendor()
	eternal.caps.SelfExpires, eternal.caps.Revoke = false, broker.RevokeNone
	with := broker.Profiles{"p": h.cfg.Profiles["p"], "eternal": profile("eternal", "vendor", eternal)}

	err := h.SetProfiles(with)
	if err == nil || !strings.Contains(err.Error(), "eternal") || !strings.Contains(err.Error(), "disclosed: accept") {
		t.Errorf("answered %v", err)
	}
	if _, err := broker.New(broker.Config{Ledger: h.store, Sealer: h.cfg.Sealer, Policy: h.cfg.Policy, Profiles: with}); err == nil {
		t.Error("a broker was made of it")
	}
	h.issue("t") // the old profiles are in force
	if list, err := h.ProfilesFor(operator); err != nil || len(list) != 1 {
		t.Errorf("%d profiles are in force", len(list))
	}
	for what, caps := range map[string]broker.Capabilities{
		"disclosed":    {Revoke: broker.RevokeNone, Disclosed: true},
		"self-expires": {Revoke: broker.RevokeNone, SelfExpires: true},
		"deny":         {Revoke: broker.RevokeDeny},
		"destroy":      {Revoke: broker.RevokeDestroy},
	} {
		v := newVendor()
		v.caps = caps
		if err := h.SetProfiles(broker.Profiles{"x": profile("x", "vendor", v)}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestNewWantsItsParts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for what, strip := range map[string]func(*broker.Config){
		"ledger": func(c *broker.Config) { c.Ledger = nil },
		"sealer": func(c *broker.Config) { c.Sealer = nil },
		"policy": func(c *broker.Config) { c.Policy = nil },
	} {
		cfg := h.cfg
		strip(&cfg)
		if _, err := broker.New(cfg); err == nil {
			t.Errorf("made without a %s", what)
		}
	}
}

func TestProfilesFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a, b := profile("a", "vendor", h.vendor), profile("b", "vendor", h.vendor)
	a.Allow = []broker.Rule{{Callers: []string{"orch"}, Scopes: []string{"read"}}}
	b.Allow = []broker.Rule{{Callers: []string{"somebody"}}}
	if err := h.SetProfiles(broker.Profiles{"a": a, "b": b, "p": h.cfg.Profiles["p"]}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		caller broker.Caller
		want   []string
	}{
		{orchestrator, []string{"a read", "p read,write"}},
		{stranger, nil},
		{auditor, []string{"a read,write", "b read,write", "p read,write"}},
		{operator, []string{"a read,write", "b read,write", "p read,write"}},
	} {
		var got []string
		offers, err := h.ProfilesFor(c.caller)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range offers {
			got = append(got, p.Name+" "+strings.Join(p.Scopes, ","))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.caller.Name, diff)
		}
	}
}

func TestFindAndList(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	for _, c := range []struct {
		caller broker.Caller
		sees   int
	}{{orchestrator, 1}, {stranger, 0}, {auditor, 1}, {operator, 1}} {
		_, err := h.Find(t.Context(), c.caller, issued.ID)
		if (err == nil) != (c.sees == 1) || err != nil && codeOf(err) != broker.CodeNotFound {
			t.Errorf("%s finds: %v", c.caller.Name, err)
		}
		// A filter by another's name does not widen what is seen.
		list, _, err := h.List(t.Context(), c.caller, broker.Filter{Caller: "orch", Limit: 10})
		if err != nil || len(list) != c.sees {
			t.Errorf("%s lists %d: %v", c.caller.Name, len(list), err)
		}
	}
}

func TestConfigLoadedAndAuditReadAreOnRecord(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	if err := h.ConfigLoaded(t.Context(), []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := h.AuditRead(t.Context(), auditor, map[string]string{"task_id": "t"}); err != nil {
		t.Fatal(err)
	}
	h.wantEvents("", "config.loaded by taskpass", "audit.read by aud")
	events := h.events("")
	if diff := cmp.Diff(map[string]string{"p": "vendor"}, events[0].Trace); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"task_id": "t"}, events[1].Trace); diff != "" {
		t.Error(diff)
	}
}
