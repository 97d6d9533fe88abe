package aws_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// documented is the policy for the broker's own identity that docs/aws.md shows.
func documented(t *testing.T) (text string, actions []string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/aws.md")
	must(t, err)
	for _, block := range strings.Split(string(page), "```json\n")[1:] {
		text, _, _ = strings.Cut(block, "```")
		if strings.Contains(text, "iam:GetRole\"") {
			break
		}
	}
	for _, s := range statements(t, text) {
		for _, a := range s["Action"].([]any) {
			actions = append(actions, a.(string))
		}
	}
	return text, actions
}

// life is all that the broker ever does at AWS; the error is the first that AWS's refusal led to.
func (r *rig) life(t *testing.T, ledger *store.Store) error {
	t.Helper()
	p := r.replica(t, ledger)
	r.crowd(t, 1)
	if _, err := p.Keep(t.Context()); err != nil {
		return err
	}
	for range 7 { // one in the inline policy, six versions of the managed one
		c := providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), 30*time.Minute)
		m, err := p.Mint(t.Context(), c)
		if err != nil {
			return err
		}
		c = providertest.Ask(t, ledger, providertest.Activate(t, ledger, c, m), broker.CauseRevoked)
		done, err := p.Revoke(t.Context(), c)
		if err != nil {
			return err
		}
		providertest.Settle(t, ledger, c, done)
	}
	if _, err := p.Keep(t.Context()); err != nil {
		return err
	}
	r.clock.Advance(time.Hour)
	if _, err := p.Keep(t.Context()); err != nil {
		return err
	}
	if r.denied() != "" || len(entries(t, r.current(r.config.Revocation.SpillPolicies[0]))) > 0 {
		t.Error("what has expired is left")
	}
	return nil
}

// The documented policy is enough for all that the broker does, and each of its actions is needed.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	text, actions := documented(t)
	if len(actions) != 13 {
		t.Errorf("the page names %d actions: %v", len(actions), actions)
	}
	for _, without := range append([]string{"nothing"}, actions...) {
		t.Run("without "+without, func(t *testing.T) {
			t.Parallel()
			edit, prepare := spill(t, true)
			r := newRig(t, edit, func(c *aws.Config) { c.SourceIdentity, c.Tags = true, map[string]string{"Task": "{{.TaskID}}"} })
			prepare(r)
			must(t, r.SetUserPolicy(allow(t, text, without, r.role)))
			err := r.life(t, replicas(t, 1)[0])
			silent(t, err)
			if without == "nothing" {
				if err != nil {
					t.Errorf("it is not enough: %v", err)
				}
				return
			}
			if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamRefused {
				t.Errorf("%s is not needed, or its lack is not told: %v", without, err)
			}
		})
	}
}

// allow is the documented policy for the rig's role, less one action.
func allow(t *testing.T, text, without, role string) string {
	t.Helper()
	text = strings.ReplaceAll(text, "role/taskpass-research", "role/"+role)
	var doc map[string]any
	must(t, json.Unmarshal([]byte(text), &doc))
	for _, s := range doc["Statement"].([]any) {
		st := s.(map[string]any)
		st["Action"] = slices.DeleteFunc(st["Action"].([]any), func(a any) bool { return a == without })
	}
	out, err := json.Marshal(doc)
	must(t, err)
	if !strings.Contains(string(out), fmt.Sprintf("role/%s", role)) {
		t.Fatal("the page's policy names another role")
	}
	return string(out)
}
