package main

import (
	"fmt"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"github.com/taskpass/taskpass/providers/sandbox"
)

// reloadProfiles have everything that a provider keeps open: gRPC connections, HTTP connections and file watches.
func reloadProfiles(i *installation) string {
	more := ""
	for n, email := range i.sandbox.GCPSlots[:2] {
		more += fmt.Sprintf(`  gcp-%d:
    provider: gcp
    ttl: {default: 10m, min: 1m, max: 1h}
    allow: [{callers: [orch]}]
    gcp:
      mode: slot
      accounts: [%q]
      token_file: "file:%s/gcp_token"
      endpoints: {credentials: %q, admin: %q, sts: %q, token: "%s/token"}
      scopes: {read: {boundary: [{bucket: %s, roles: [roles/storage.objectViewer], prefix: "tasks/{{.TaskID}}/"}]}}
`, n, email, i.dir, i.sandbox.GCPRPC, i.sandbox.GCPRPC, i.sandbox.GCPURL, i.sandbox.GCPURL, sandbox.Bucket)
	}
	return more + fmt.Sprintf(`  pool:
    provider: pool
    ttl: {default: 15m, min: 1s, max: 1h}
    allow: [{callers: [orch]}]
    pool: {name: p, disclosed: accept, scopes: [read], keys: [{name: k, value: "file:%s/model_1"}]}
`, i.dir)
}

var goroutineCount = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)

func goroutines(t *testing.T, url string) int {
	t.Helper()
	found := goroutineCount.FindStringSubmatch(mustCall(t, 200, "GET", url+"/metrics", "", ""))
	if found == nil {
		t.Fatal("the metrics have no go_goroutines")
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

// A reload closes what the replaced providers had open, and a refused one what it had opened before the fault was found.
func TestReloadLeaksNothing(t *testing.T) {
	t.Parallel()
	i := install(t)
	writeFile(t, i.dir, "gcp_token", i.sandbox.GCPBrokerToken)
	writeFile(t, i.dir, "model_1", i.sandbox.ModelKeys[0])
	i.configure(func(s *settings) { s.More = reloadProfiles(i) })
	c, url := i.serve()
	for _, profile := range []string{"aws-test", "gcp-0", "gcp-1", "pool"} { // each provider has connections
		mustCall(t, 201, "POST", url+"/v1/credentials", i.tokens["orch"],
			fmt.Sprintf(`{"task_id":"t","agent_id":"a","profile":%q,"scopes":["read"],"ttl_seconds":60}`, profile))
	}
	before := goroutines(t, url)
	const reloads = 8
	for n := range reloads {
		c.signal(syscall.SIGHUP)
		c.awaitLine("reloaded", n)
	}
	// Its gcp profiles open, and stripe's does not: the set is refused half-built.
	i.configure(func(s *settings) {
		s.More = reloadProfiles(i) + `  zz:
    provider: aws
    ttl: {default: 15m, max: 1h}
    allow: [{callers: [orch]}]
    aws: {role_arn: "` + sandbox.RoleARN + `", region: us-east-1, endpoint: "` + i.sandbox.AWSURL + `", access_key_id: "file:` + i.dir + `/none", secret_access_key: "file:` + i.dir + `/none",
      scopes: {read: {statements: [{actions: ["s3:GetObject"], resources: ["arn:aws:s3:::b/x"]}]}}}
`
	})
	for n := range reloads {
		c.signal(syscall.SIGHUP)
		c.awaitLine("not reloaded: the profiles are as before", n)
	}
	// One leaked set would be 20 goroutines and more.
	await(t, "the replaced providers are closed", func() bool { return goroutines(t, url) < before+20 })
	i.configure(func(s *settings) { s.More = reloadProfiles(i) })
	c.stop()
}
