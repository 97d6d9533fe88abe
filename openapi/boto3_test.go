package openapi_test

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/providers/sandbox"
)

// boto3 uses two services with nothing but its environment. Debian 12's version does not know AWS_ENDPOINT_URL yet.
const boto3 = `
import os, sys, boto3, botocore
old = tuple(int(n) for n in botocore.__version__.split(".")[:2]) < (1, 31)
own = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if old else {}
s3, sts = boto3.client("s3", **own), boto3.client("sts", **own)
s3.put_object(Bucket=sys.argv[1], Key=sys.argv[2], Body=b"from boto3")
print(s3.get_object(Bucket=sys.argv[1], Key=sys.argv[2])["Body"].read().decode())
print(sts.get_caller_identity()["Arn"])
`

// pythonWith is a Python that has the module: Debian's own, or the first one in PATH.
func pythonWith(t *testing.T, module string) string {
	t.Helper()
	for _, name := range []string{"/usr/bin/python3", "python3"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if _, code := run(t, os.Environ(), path, "-c", "import "+module); code == 0 {
			return path
		}
	}
	lacks(t, "Python with "+module)
	return ""
}

// boto3 needs nothing but the variables of secret.env: it reads the region from AWS_DEFAULT_REGION only.
func TestBoto3WithPlainEnvironment(t *testing.T) {
	t.Parallel()
	python := pythonWith(t, "boto3")
	a := newAPI(t)
	c := a.issued(a.call("orch", "POST", "/v1/credentials", request("aws", "t", `"read","write"`)))
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	for name, value := range c.Secret.Env {
		env = append(env, name+"="+value)
	}
	out, code := run(t, env, python, "-c", boto3, sandbox.Bucket, "tasks/t/x")
	if code != 0 || !strings.Contains(out, "from boto3") || !strings.Contains(out, "assumed-role/"+sandbox.RoleName) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, code = run(t, env, python, "-c", boto3, sandbox.Bucket, "tasks/other/x"); code == 0 || !strings.Contains(out, "AccessDenied") {
		t.Errorf("in another task's prefix: exit code %d: %s", code, out)
	}
}

// A profile's fixed variables stand beside the provider's own, which they never replace, also after a refresh, in a ticket
// and when the secret is resolved.
func TestProfilesFixedVariables(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(_ *api, s *setup) {
		for _, name := range []string{"aws", "pool"} {
			p := s.broker.Profiles[name]
			p.Env = map[string]string{"TEAM": "blue", "AWS_REGION": "wrong", "MODEL_API_KEY": "wrong"}
			s.broker.Profiles[name] = p
		}
	})
	check := func(what string, env map[string]string, region string) {
		t.Helper()
		if env["TEAM"] != "blue" || env["AWS_REGION"] != region {
			t.Errorf("%s: TEAM=%s AWS_REGION=%s", what, env["TEAM"], env["AWS_REGION"])
		}
	}
	c := a.issue("t")
	check("issued", c.Secret.Env, sandbox.Region)
	if c.Secret.Env["AWS_DEFAULT_REGION"] != sandbox.Region || c.Secret.Env["AWS_ENDPOINT_URL"] != a.sandbox.AWSURL {
		t.Errorf("region %s, endpoint %s", c.Secret.Env["AWS_DEFAULT_REGION"], c.Secret.Env["AWS_ENDPOINT_URL"])
	}
	check("refreshed", a.issued(a.call("orch", "POST", "/v1/credentials/"+c.ID+"/refresh", "")).Secret.Env, sandbox.Region)
	if got := a.call("orch", "POST", "/v1/credentials/"+c.ID+"/resolve", ""); got.status != http.StatusOK || !strings.Contains(got.body, `"TEAM":"blue"`) {
		t.Errorf("resolved: %d", got.status)
	}
	if got := a.redeem(a.ticket()); !strings.Contains(got.body, `"TEAM":"blue"`) {
		t.Errorf("redeemed: %d", got.status)
	}
	k := a.issued(a.call("orch", "POST", "/v1/credentials", request("pool", "t", `"call"`)))
	check("pool", k.Secret.Env, "wrong")
	if k.Secret.Env["MODEL_API_KEY"] == "wrong" {
		t.Error("a fixed variable replaced the key")
	}
}
