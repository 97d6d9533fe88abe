package gcp_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/gcp"
)

const (
	email = "a-1@my-project.iam.gserviceaccount.com"
	other = "a-2@my-project.iam.gserviceaccount.com"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	short, long := time.Second, 2*time.Hour
	type config = gcp.Config
	rule := func(edit func(*gcp.Rule)) func(*config) {
		return func(c *config) {
			r := gcp.Rule{Bucket: "data", Roles: []string{"roles/storage.objectViewer"}, Prefix: "tasks/{{.TaskID}}/"}
			edit(&r)
			c.Scopes = map[string]gcp.Scope{"s": {Boundary: []gcp.Rule{r}}}
		}
	}
	prefix := func(p string) func(*config) { return rule(func(r *gcp.Rule) { r.Prefix = p }) }
	slot := func(c *config) { c.Mode, c.ServiceAccount, c.Accounts = "slot", "", []string{email, other} }
	key := func(c *config) { c.Mode = "key" }
	for name, c := range map[string]struct {
		edits []func(*config)
		want  string // pointers, sorted as they are found
	}{
		"good":                      {nil, ""},
		"a slot":                    {[]func(*config){slot}, ""},
		"a key":                     {[]func(*config){key}, ""},
		"a dedicated key":           {[]func(*config){slot, key, func(c *config) { c.Dedicated = true }}, ""},
		"a boundary":                {[]func(*config){rule(func(*gcp.Rule) {})}, ""},
		"no mode":                   {[]func(*config){func(c *config) { c.Mode = "" }}, "mode"},
		"no account":                {[]func(*config){func(c *config) { c.ServiceAccount = "" }}, "service_account"},
		"not a service account":     {[]func(*config){func(c *config) { c.ServiceAccount = "bob@example.com" }}, "service_account"},
		"accounts of impersonate":   {[]func(*config){func(c *config) { c.Accounts = []string{email} }}, "accounts"},
		"no accounts":               {[]func(*config){slot, func(c *config) { c.Accounts = nil }}, "accounts"},
		"a share of nothing":        {[]func(*config){slot, func(c *config) { c.SharePercent = 101 }}, "share_percent"},
		"a share of one account":    {[]func(*config){func(c *config) { c.SharePercent = 50 }}, "share_percent"},
		"an account twice":          {[]func(*config){slot, func(c *config) { c.Accounts = []string{email, email} }}, "accounts[1]"},
		"both kinds":                {[]func(*config){slot, func(c *config) { c.ServiceAccount = email }}, "service_account"},
		"dedicated tokens":          {[]func(*config){func(c *config) { c.Dedicated = true }}, "dedicated"},
		"an audience of a slot":     {[]func(*config){slot, func(c *config) { c.Audience = "x" }}, "audience"},
		"a long key":                {[]func(*config){key, func(c *config) { c.LongLifetime = true }}, "long_lifetime"},
		"delegates of a key":        {[]func(*config){key, func(c *config) { c.Delegates = []string{other} }}, "delegates"},
		"a bad delegate":            {[]func(*config){func(c *config) { c.Delegates = []string{other, "x"} }}, "delegates[1]"},
		"skew too short":            {[]func(*config){func(c *config) { c.Skew = &short }}, "skew"},
		"skew too long":             {[]func(*config){func(c *config) { c.Skew = &long }}, "skew"},
		"grace too long":            {[]func(*config){func(c *config) { c.Grace = &long }}, "grace"},
		"a secret for a reference":  {[]func(*config){func(c *config) { c.TokenFile = "ya29.C4n4ry" }}, "token_file"},
		"two identities":            {[]func(*config){func(c *config) { c.TokenFile, c.CredentialsFile = "env:A", "env:B" }}, "token_file"},
		"plaintext far away":        {[]func(*config){func(c *config) { c.TokenFile, c.Endpoints.STS = "env:A", "http://10.0.0.1" }}, "endpoints.sts"},
		"plaintext without a token": {[]func(*config){func(c *config) { c.Endpoints.Admin = "http://127.0.0.1:1" }}, "token_file"},
		"user in an endpoint":       {[]func(*config){func(c *config) { c.Endpoints.Token = "https://a:C4n4ry@x" }}, "endpoints.token"},
		"no scopes":                 {[]func(*config){func(c *config) { c.Scopes = nil }}, "scopes"},
		"not an OAuth scope":        {[]func(*config){func(c *config) { c.Scopes = map[string]gcp.Scope{"s": {OAuth: []string{"read"}}} }}, "scopes.s.oauth[0]"},
		"a key with a boundary":     {[]func(*config){key, rule(func(*gcp.Rule) {})}, "scopes.s"},
		"a boundary on less": {[]func(*config){rule(func(*gcp.Rule) {}), func(c *config) {
			s := c.Scopes["s"]
			s.OAuth = []string{"https://www.googleapis.com/auth/devstorage.read_only"}
			c.Scopes["s"] = s
		}}, "scopes.s.oauth"},
		"no bucket":            {[]func(*config){rule(func(r *gcp.Rule) { r.Bucket = "" })}, "scopes.s.boundary[0].bucket"},
		"a bucket with a path": {[]func(*config){rule(func(r *gcp.Rule) { r.Bucket = "a/b" })}, "scopes.s.boundary[0].bucket"},
		"no roles":             {[]func(*config){rule(func(r *gcp.Rule) { r.Roles = nil })}, "scopes.s.boundary[0].roles"},
		"a bad role":           {[]func(*config){rule(func(r *gcp.Rule) { r.Roles = []string{"owner"} })}, "scopes.s.boundary[0].roles[0]"},
		"eleven rules": {[]func(*config){rule(func(*gcp.Rule) {}), func(c *config) {
			r := c.Scopes["s"].Boundary[0]
			c.Scopes["s"] = gcp.Scope{Boundary: []gcp.Rule{r, r, r, r, r, r, r, r, r, r, r}}
		}}, "scopes.s.boundary"},
		"prefix without an end":   {[]func(*config){prefix("tasks/{{.TaskID}}")}, "scopes.s.boundary[0].prefix"},
		"prefix that an id ends":  {[]func(*config){prefix("tasks/{{.TaskID}}.d")}, "scopes.s.boundary[0].prefix"},
		"two ids that meet":       {[]func(*config){prefix("{{.TaskID}}-{{.AgentID}}/")}, "scopes.s.boundary[0].prefix"},
		"two ids apart":           {[]func(*config){prefix("{{.TaskID}}/{{.AgentID}}/{{.Metadata.team}}/")}, ""},
		"an unknown placeholder":  {[]func(*config){prefix("{{.Whoever}}/")}, "scopes.s.boundary[0].prefix"},
		"a caller's own prefix":   {[]func(*config){prefix("{{.Caller}}/{{.TaskID}}/")}, ""},
		"a prefix without any id": {[]func(*config){prefix("public/")}, ""},
	} {
		cfg := gcp.Config{Mode: "impersonate", ServiceAccount: email, Scopes: map[string]gcp.Scope{"s": {}}}
		for _, e := range c.edits {
			e(&cfg)
		}
		if name == "a dedicated key" {
			cfg.Mode = "key"
		}
		var got []string
		for _, f := range cfg.Check() {
			got = append(got, f.Pointer)
			if strings.Contains(fmt.Sprint(f), "C4n4ry") {
				t.Errorf("%s: repeats what was given", name)
			}
		}
		if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cfg  gcp.Config
		want broker.Capabilities
	}{
		{gcp.Config{Mode: "impersonate"}, broker.Capabilities{MinTTL: 10 * time.Second, MaxTTL: time.Hour, SelfExpires: true, Revoke: broker.RevokeNone}},
		{gcp.Config{Mode: "impersonate", LongLifetime: true}, broker.Capabilities{MinTTL: 10 * time.Second, MaxTTL: 12 * time.Hour, SelfExpires: true, Revoke: broker.RevokeNone}},
		{gcp.Config{Mode: "slot"}, broker.Capabilities{MinTTL: 10 * time.Second, MaxTTL: time.Hour, SelfExpires: true, Revoke: broker.RevokeDeny}},
		{gcp.Config{Mode: "key"}, broker.Capabilities{MinTTL: time.Minute, MaxTTL: 12 * time.Hour, Revoke: broker.RevokeDeny, RevokeLag: time.Hour}},
	} {
		if diff := cmp.Diff(c.want, c.cfg.Capabilities()); diff != "" {
			t.Errorf("%+v: %s", c.cfg, diff)
		}
	}
}
