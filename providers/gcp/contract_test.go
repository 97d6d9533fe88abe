package gcp_test

import (
	"testing"

	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

// dedicated gives a rig of keys the accounts that tasks hold one at a time.
func dedicated(s *sandbox.Config, c *gcp.Config) {
	c.Dedicated, c.ServiceAccount = true, ""
	for _, a := range s.Accounts {
		c.Accounts = append(c.Accounts, a.Name+"@"+s.Project+".iam.gserviceaccount.com")
	}
}

// bounded narrows what a rig's scope means to the task's own objects.
func bounded(_ *sandbox.Config, c *gcp.Config) {
	c.Scopes = map[string]gcp.Scope{"read": {Boundary: []gcp.Rule{
		{Bucket: bucket, Roles: []string{"roles/storage.objectViewer"}, Prefix: "tasks/{{.TaskID}}/"},
	}}}
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *rig{
		"impersonate":         func(t testing.TB) *rig { return newRig(t, "impersonate", 1) },
		"impersonate bounded": func(t testing.TB) *rig { return newRig(t, "impersonate", 1, bounded) },
		"slot":                func(t testing.TB) *rig { return newRig(t, "slot", providertest.AtOnce+2) },
		"key":                 func(t testing.TB) *rig { return newRig(t, "key", 1) },
		"key dedicated":       func(t testing.TB) *rig { return newRig(t, "key", providertest.AtOnce+2, dedicated) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ledger := replicas(t, 1)[0]
			providertest.Run(t, func(t *testing.T) providertest.Subject { return start(t).subject(t, ledger) })
		})
	}
}
