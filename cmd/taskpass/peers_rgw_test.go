//go:build peers

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/taskpass/taskpass/openapi/client"
)

const (
	peerBucket = "research"
	peerRegion = "us-east-1"
	peerRole   = "taskpass-agent"
)

// peerTrust lets the broker's user in, and none of the role's own sessions. The second statement is for RGW: it holds no
// session policy against AssumeRole (https://tracker.ceph.com/issues/78697), so the broker's ban on sts:* is not enough
// there. A user's aws:userid has no colon, a session's always has.
const peerTrust = `{"Version":"2012-10-17","Statement":[
	{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam:::user/broker"]},"Action":["sts:AssumeRole"]},
	{"Effect":"Deny","Principal":{"AWS":["*"]},"Action":["sts:AssumeRole"],"Condition":{"StringLike":{"aws:userid":["*:*"]}}}]}`

// peerAccess is far more than any scope, so that whatever is refused is refused for the session policy.
const peerAccess = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*","iam:*","sts:*"],"Resource":["*"]}]}`

// peerRGW is Ceph's RADOS gateway: S3, STS and IAM by people who have never heard of us.
type peerRGW struct {
	dir, url             string
	accessKey, secretKey string // of the user `broker`
}

// startPeerRGW starts it and ends it with the test, and also when this process dies without ending its tests: the shell
// that started it waits for the end of its input.
func startPeerRGW(t *testing.T) *peerRGW {
	t.Helper()
	dir, err := os.MkdirTemp("", "taskpass-rgw-")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Abs("../../.ci")
	if err != nil {
		t.Fatal(err)
	}
	port := peerPort(t)
	p := &peerRGW{dir: dir, url: fmt.Sprintf("http://127.0.0.1:%d", port), accessKey: rand.Text(), secretKey: rand.Text()}
	cmd := exec.Command("bash", "-c", `"$0/radosgw-up" "$1" "$2" >&2 || exit; trap "" PIPE; echo up; read -r _; exec "$0/radosgw-down" "$1"`,
		scripts, dir, fmt.Sprint(port))
	cmd.Env = append(os.Environ(), "RADOSGW_ACCESS_KEY="+p.accessKey, "RADOSGW_SECRET_KEY="+p.secretKey, "STSMIN=900")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us; the shell then sees its input end
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up, _ := bufio.NewReader(stdout).ReadString('\n')
	t.Cleanup(func() {
		_ = stdin.Close()
		err := cmd.Wait()
		if _, there := os.Stat(dir); up != "" && (err != nil || !os.IsNotExist(there)) {
			t.Errorf("ending RGW: %v; %s is %v\n%s", err, dir, there, &said)
		}
	})
	if up != "up\n" {
		_ = stdin.Close()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
		t.Fatalf("RGW does not start; `.ci/setup peers` installs it.\n%s", &said)
	}
	return p
}

// peerPort finds a port that is free, with the next one; both below those that the kernel gives away by itself.
func peerPort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + mathrand.IntN(12000)
		a, errA := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		b, errB := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		for _, l := range []net.Listener{a, b} {
			if l != nil {
				_ = l.Close()
			}
		}
		if errA == nil && errB == nil {
			return port
		}
	}
	t.Fatal("no two free ports")
	return 0
}

// furnish makes, as RGW's own user, what an operator has: a bucket, objects, roles.
func (p *peerRGW) furnish(t *testing.T, tasks ...string) {
	t.Helper()
	store, roles := p.owner().s3(), iam.NewFromConfig(p.owner().config())
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(store.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(peerBucket)}))
	for _, task := range tasks {
		must(nil, p.owner().put(t, peerKey(task), "of "+task))
	}
	must(nil, p.owner().put(t, "index.txt", "of nobody"))
	for _, name := range []string{peerRole, "trusts-others", "crowd", "meddled", "killed-alone", "killed-beside"} {
		trust := peerTrust
		if name == "trusts-others" {
			trust = strings.ReplaceAll(trust, "user/broker", "user/somebody-else")
		}
		must(roles.CreateRole(t.Context(), &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: &trust}))
		must(roles.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
			RoleName: &name, PolicyName: aws.String("access"), PolicyDocument: aws.String(peerAccess),
		}))
	}
}

func peerARN(role string) string { return "arn:aws:iam:::role/" + role }

// peerKey is the object that each task has from the beginning.
func peerKey(task string) string { return "tasks/" + task + "/brief.txt" }

// peerAgent is somebody with AWS credentials and the vendor's own SDK.
type peerAgent struct {
	url            string
	id, key, token string
}

func (p *peerRGW) owner() peerAgent { return peerAgent{p.url, p.accessKey, p.secretKey, ""} }

func (p *peerRGW) agent(secret client.Secret) peerAgent {
	return peerAgent{p.url, secret.Env["AWS_ACCESS_KEY_ID"], secret.Env["AWS_SECRET_ACCESS_KEY"], secret.Env["AWS_SESSION_TOKEN"]}
}

// bare is a session of the role that has no session policy: what the role allows by itself.
func (p *peerRGW) bare(t *testing.T) peerAgent {
	t.Helper()
	out, err := sts.NewFromConfig(p.owner().config()).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: aws.String(peerARN(peerRole)), RoleSessionName: aws.String("bare"),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	return peerAgent{p.url, *c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken}
}

func (a peerAgent) config() aws.Config {
	return aws.Config{
		Region: peerRegion, BaseEndpoint: &a.url, HTTPClient: &http.Client{Transport: peerTransport{}},
		Credentials: credentials.NewStaticCredentialsProvider(a.id, a.key, a.token),
		Retryer:     func() aws.Retryer { return aws.NopRetryer{} },
	}
}

// peerTransport hands the body over as what it is, bytes in memory. From the SDK's own reader net/http sends it apart
// from the header, and when an answer overtakes the end of that, the SDK closes the body, net/http takes this for a
// failed request and closes the connection with the answer unread.
type peerTransport struct{}

func (peerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.WithContext(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(text))
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (a peerAgent) s3() *s3.Client {
	return s3.NewFromConfig(a.config(), func(o *s3.Options) {
		o.UsePathStyle, o.RequestChecksumCalculation = true, aws.RequestChecksumCalculationWhenRequired
	})
}

func (a peerAgent) get(t *testing.T, key string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := a.s3().GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(peerBucket), Key: &key})
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	text, err := io.ReadAll(out.Body)
	return string(text), err
}

func (a peerAgent) put(t *testing.T, key, text string) error {
	t.Helper()
	_, err := a.s3().PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(peerBucket), Key: &key, Body: strings.NewReader(text)})
	return err
}

// list gives the keys below a prefix; a nil prefix is not sent at all.
func (a peerAgent) list(t *testing.T, prefix *string) ([]string, error) {
	t.Helper()
	out, err := a.s3().ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String(peerBucket), Prefix: prefix})
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, o := range out.Contents {
		keys = append(keys, *o.Key)
	}
	return keys, nil
}
