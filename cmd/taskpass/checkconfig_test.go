package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/providers/sandbox"
)

// check-config asks the upstream, and fails where a right is lacking that a profile needs.
func TestCheckConfigOnline(t *testing.T) {
	t.Parallel()
	upstream, err := sandbox.Start(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = upstream.Close() })
	dir := t.TempDir()
	id, key := writeFile(t, dir, "id", upstream.BrokerAccessKeyID), writeFile(t, dir, "key", upstream.BrokerSecretAccessKey)
	file := func(name, role string) string {
		return writeFile(t, dir, name, fmt.Sprintf(`listen: 127.0.0.1:0
database: {url: "file:%[1]s/url"}
seal: {keyset: "file:%[1]s/keyset"}
profiles:
  aws:
    provider: aws
    ttl: {default: 15m, max: 1h}
    allow: [{callers: ["*"]}]
    aws:
      role_arn: %[2]s
      endpoint: %[3]s
      region: us-east-1
      access_key_id: "file:%[4]s"
      secret_access_key: "file:%[5]s"
      scopes: {"read": {statements: [{actions: ["s3:GetObject"], resources: ["arn:aws:s3:::b/{{.TaskID}}/*"]}]}}
`, dir, role, upstream.AWSURL, id, key))
	}
	good := file("good.yaml", sandbox.RoleARN)
	if r := must(t, "check-config", "--online", good); !strings.Contains(r.stdout, "profile aws: proven: iam:PutRolePolicy on "+sandbox.RoleARN) {
		t.Error(r)
	}
	if r := must(t, "check-config", "--probe-writes", good); !strings.Contains(r.stdout, "(done, and undone)") {
		t.Error(r)
	}
	if r := must(t, "check-config", good); strings.Contains(r.stdout, "proven") {
		t.Error(r)
	}

	absent := strings.ReplaceAll(sandbox.RoleARN, "role/", "role/absent-")
	r := mustFail(t, 1, []string{"rights that the profiles need are lacking"}, "check-config", "--probe-writes", file("absent.yaml", absent))
	if !strings.Contains(r.stdout, "profile aws: lacking: iam:PutRolePolicy on "+absent) {
		t.Error(r)
	}
	noKey := writeFile(t, dir, "lacking.yaml", fmt.Sprintf(`listen: 127.0.0.1:0
database: {url: "file:%[1]s/url"}
seal: {keyset: "file:%[1]s/keyset"}
profiles:
  wallet:
    provider: stripe
    ttl: {default: 10m, max: 55m}
    allow: [{callers: ["*"]}]
    stripe:
      mode: ephemeral
      secret_key: "file:%[2]s"
      endpoint: %[3]s
      ephemeral: {for: customer, object: "{{.Metadata.customer}}", version: "2024-04-10"}
      scopes: {wallet: {}}
`, dir, writeFile(t, dir, "stripe_key", "sk_test_SomebodyElsesKey0123456789"), upstream.StripeURL))
	if r := mustFail(t, 1, []string{"1 of the rights"}, "check-config", "--online", noKey); !strings.Contains(r.stdout, "profile wallet: lacking: secret_key") {
		t.Error(r)
	}
}
