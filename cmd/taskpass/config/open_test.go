package config_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers"
)

// Opening asks nothing of the ledger, so the deps' interfaces may be empty here.
var deps = providers.Deps{Clock: time.Now, Logger: slog.New(slog.DiscardHandler)}

func TestOpen(t *testing.T) {
	t.Parallel()
	profiles, err := parse(t, read(t, example)).Open(t.Context(), deps)
	if err != nil {
		t.Fatal(err)
	}
	want := broker.Profiles{
		"aws-research": {
			Name: "aws-research", Provider: "aws", Scopes: []string{"read:content", "read:search", "write:content"},
			MinTTL: 15 * time.Minute, DefaultTTL: time.Hour, MaxTTL: 8 * time.Hour,
			MaxLifetime: 24 * time.Hour, Overlap: 10 * time.Minute, TicketTTL: 10 * time.Minute, RevokeOnReuse: true,
			Allow: []broker.Rule{
				{Callers: []string{"orchestrator"}, Tasks: []string{"research-*"}, Scopes: []string{"read:search", "read:content"}},
				{Callers: []string{"orchestrator"}, Tasks: []string{"research-publish-*"}, Agents: []string{"publisher-*"}, Scopes: []string{"write:content"}, MaxTTL: time.Hour},
			},
		},
		"search-api": {
			Name: "search-api", Provider: "pool", Scopes: []string{"search"},
			MinTTL: time.Second, DefaultTTL: 10 * time.Minute, MaxTTL: 2 * time.Hour, // no min: the provider's
			Allow: []broker.Rule{{Callers: []string{"orchestrator", "batch-*"}}},
		},
	}
	if diff := cmp.Diff(want, profiles, cmpopts.IgnoreFields(broker.Profile{}, "Upstream")); diff != "" {
		t.Error(diff)
	}
	for name, p := range profiles {
		if p.Upstream == nil {
			t.Errorf("%s has no provider", name)
		}
	}
}

// awsProfile is a profile whose broker's credentials are in a file.
func awsProfile(name, file string) string {
	section := strings.Replace(awsSection, "region", fmt.Sprintf("access_key_id: file:%[1]s\n      secret_access_key: file:%[1]s\n      region", file), 1)
	return "  " + name + ":\n    provider: aws\n    ttl: {default: 10m, max: 1h}\n    allow: [{callers: [bob]}]\n" + section
}

func TestOpenIsAllOrNothingAndNamesEveryFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	text := small + awsProfile("b", dir+"/absent") + awsProfile("c", there) + awsProfile("d", dir+"/gone")
	text = strings.Replace(text, "max: 1h}", "max: 721h}", 1)
	profiles, err := parse(t, text).Open(t.Context(), deps)
	if profiles != nil {
		t.Errorf("got %v", profiles)
	}
	lines := faultLines(t, err)
	for i, want := range []string{
		"6: profiles.a.ttl.max: is longer than the 720h that pool can do",
		"15: profiles.b: cannot be opened: access_key_id: file:" + dir + "/absent",
		"35: profiles.d: cannot be opened: access_key_id: file:" + dir + "/gone",
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Errorf("got %q, want %s", lines, want)
		}
	}
	if len(lines) != 3 || strings.Contains(err.Error(), canary) {
		t.Errorf("got %q", lines)
	}
}

func TestOpenHoldsTTLsToTheProvider(t *testing.T) {
	t.Parallel()
	for ttl, want := range map[string][]string{
		"{min: 1s, default: 1h, max: 720h}":     nil,
		"{min: 500ms, default: 1h, max: 1h}":    {"6: profiles.a.ttl.min: is shorter than the 1s that pool can do"},
		"{default: 500ms, max: 720h1s}":         {"6: profiles.a.ttl.default: is shorter than the 1s that pool can do", "6: profiles.a.ttl.max: is longer than the 720h that pool can do"},
		"{min: 1ms, default: 2ms, max: 9000h }": {"6: profiles.a.ttl.max: is longer than the 720h that pool can do", "6: profiles.a.ttl.min: is shorter than the 1s that pool can do"},
	} {
		_, err := parse(t, strings.Replace(small, "{default: 10m, max: 1h}", ttl, 1)).Open(t.Context(), deps)
		if want == nil {
			if err != nil {
				t.Errorf("%s: %v", ttl, err)
			}
			continue
		}
		if diff := cmp.Diff(want, faultLines(t, err)); diff != "" {
			t.Errorf("%s: %s", ttl, diff)
		}
	}
}

func TestOpenStopsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if profiles, err := parse(t, small).Open(ctx, deps); profiles != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v", profiles, err)
	}
}
