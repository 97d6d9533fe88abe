package config_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// asked notes the share that a provider takes its keys with.
type asked struct {
	broker.Slots
	share broker.Share
}

func (a *asked) SealedKeys(context.Context, string) ([]broker.SealedKey, error) { return nil, nil }

func (a *asked) Take(_ context.Context, _ string, _ broker.Credential, _ []broker.KeyChoice, share broker.Share, _ broker.Rest, _ time.Time) (string, bool, time.Time, error) {
	a.share = share
	return "", false, time.Time{}, nil
}

// The rules of all profiles that name a pool tell whether several callers may use it: only then each has a share.
func TestSharesOfPools(t *testing.T) { //nolint:paralleltest // it sets the environment
	var keys strings.Builder
	for _, name := range strings.Split("ABCDEFGH", "") {
		t.Setenv("TASKPASS_TEST_"+name, "key-"+name)
		keys.WriteString("        - {name: " + name + ", value: \"env:TASKPASS_TEST_" + name + "\"}\n")
	}
	profile := func(name, allow, more string) string {
		return "  " + name + ":\n    provider: pool\n    ttl: {default: 10m, max: 1h}\n    allow: " + allow +
			"\n    pool:\n      name: p\n      scopes: [s]\n      disclosed: accept\n" + more + "      keys:\n" + keys.String()
	}
	for _, c := range []struct {
		name, a, b, more string
		most             int
	}{
		{"one caller", "[{callers: [bob]}]", "", "", 0},
		{"one caller in two rules", "[{callers: [bob], tasks: [x-*]}, {callers: [bob], tasks: [y-*]}]", "", "", 0},
		{"one caller in two profiles", "[{callers: [bob]}]", "[{callers: [bob]}]", "", 0},
		{"two callers in a rule", "[{callers: [bob, eve]}]", "", "", 2},
		{"two callers in two rules", "[{callers: [bob]}, {callers: [eve]}]", "", "", 2},
		{"another caller in another profile", "[{callers: [bob]}]", "[{callers: [eve]}]", "", 2},
		{"a pattern", `[{callers: ["bob*"]}]`, "", "", 2},
		{"everybody", `[{callers: ["*"]}]`, "", "", 2},
		{"half", "[{callers: [bob, eve]}]", "", "      share_percent: 50\n", 4},
		{"at least one key", "[{callers: [bob, eve]}]", "", "      share_percent: 1\n", 1},
		{"all", "[{callers: [bob, eve]}]", "", "      share_percent: 100\n", 0},
	} {
		text := "database: {url: \"env:DB\"}\nseal: {keyset: \"env:KEYSET\"}\nprofiles:\n" + profile("a", c.a, c.more)
		if c.b != "" {
			text += profile("b", c.b, c.more)
		}
		slots, with := &asked{}, deps
		with.Slots = slots
		profiles, err := parse(t, text).Open(t.Context(), with)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for name, p := range profiles {
			slots.share = broker.Share{Most: -1}
			_, err := p.Upstream.Mint(t.Context(), broker.Credential{Scopes: []string{"s"}})
			if broker.AsError(err).Code != broker.CodePoolExhausted || slots.share.Most != c.most {
				t.Errorf("%s: profile %s takes with a share of %d keys, want %d (%v)", c.name, name, slots.share.Most, c.most, err)
			}
		}
	}
}

type accounts = broker.Accounts // the embedded field would hide the method of that name

// occupied notes how many accounts a provider takes at most.
type occupied struct {
	accounts
	most int
}

func (o *occupied) Occupy(_ context.Context, _ broker.Credential, _ []string, most int, _, _ time.Time) (broker.Occupied, bool, time.Time, error) {
	o.most = most
	return broker.Occupied{}, false, time.Time{}, nil
}

// Service accounts of Google are shared out like keys, also where two profiles have only one of them in common.
func TestSharesOfAccounts(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	account := func(n int) string { return "a" + strconv.Itoa(n) + "@p.iam.gserviceaccount.com" }
	var all []string
	for i := range 8 {
		all = append(all, account(i))
	}
	profile := func(name, allow, more string, accounts ...string) string {
		return "  " + name + ":\n    provider: gcp\n    ttl: {default: 10m, max: 1h}\n    allow: " + allow + "\n    gcp:\n      mode: slot\n" +
			"      token_file: file:" + token + "\n      scopes: {s: {}}\n" + more + "      accounts: [" + strings.Join(accounts, ", ") + "]\n"
	}
	for _, c := range []struct {
		name, a, b, more string
		most             int
	}{
		{"one caller", "[{callers: [bob]}]", profile("b", "[{callers: [bob]}]", "", account(0)), "", 0},
		{"two callers", "[{callers: [bob, eve]}]", "", "", 2},
		{"everybody", `[{callers: ["*"]}]`, "", "      share_percent: 50\n", 4},
		{"another caller of one account", "[{callers: [bob]}]", profile("b", "[{callers: [eve]}]", "", account(9), account(7)), "", 2},
		{"another caller of other accounts", "[{callers: [bob]}]", profile("b", "[{callers: [eve]}]", "", account(9)), "", 0},
	} {
		slots, with := &occupied{}, deps
		with.Accounts = slots
		text := "database: {url: \"env:DB\"}\nseal: {keyset: \"env:KEYSET\"}\nprofiles:\n" + profile("a", c.a, c.more, all...) + c.b
		profiles, err := parse(t, text).Open(t.Context(), with)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		slots.most = -1
		_, err = profiles["a"].Upstream.Mint(t.Context(), broker.Credential{Scopes: []string{"s"}})
		if broker.AsError(err).Code != broker.CodePoolExhausted || slots.most != c.most {
			t.Errorf("%s: at most %d accounts, want %d (%v)", c.name, slots.most, c.most, err)
		}
	}
}
