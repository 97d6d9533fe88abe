package aws_test

import (
	"context"
	"net/http"
	"strconv"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
)

// What STS is asked for, to the letter: it is what CloudTrail will show.
func TestMintAsks(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.provider(t, func(c *aws.Config) {
		c.ExternalID, c.SourceIdentity = "ext", true
		c.Tags = map[string]string{"Team": "{{.Metadata.team}}", "Agent": "{{.AgentID}}", "Task": "{{.TaskID}}", "Env": "prod"}
		s := c.Scopes["read"]
		s.PolicyARNs = []string{"arn:aws:iam::aws:policy/B", "arn:aws:iam::aws:policy/A", "arn:aws:iam::aws:policy/B"}
		c.Scopes["read"] = s
	})
	c := w.request("read")
	if _, err := p.Mint(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, values := range w.last(t) {
		got[name] = values[0]
	}
	delete(got, "Policy")
	want := map[string]string{
		"Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": "arn:aws:iam::123456789012:role/agents",
		"RoleSessionName": "abcdefghijklmnop", "SourceIdentity": "abcdefghijklmnop", "ExternalId": "ext", "DurationSeconds": "900",
		"PolicyArns.member.1.arn": "arn:aws:iam::aws:policy/A", "PolicyArns.member.2.arn": "arn:aws:iam::aws:policy/B",
		"Tags.member.1.Key": "Agent", "Tags.member.1.Value": "a-1", "Tags.member.2.Key": "Env", "Tags.member.2.Value": "prod",
		"Tags.member.3.Key": "Task", "Tags.member.3.Value": "t-1", "Tags.member.4.Key": "Team", "Tags.member.4.Value": "blue",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMintAnswers(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	m, err := w.provider(t, func(c *aws.Config) { c.SourceIdentity = true }).Mint(t.Context(), w.request("read"))
	if err != nil {
		t.Fatal(err)
	}
	reveal := func(secrets map[string]broker.Secret) map[string]string {
		out := map[string]string{}
		for name, s := range secrets {
			out[name] = s.Reveal()
		}
		return out
	}
	for _, c := range []struct{ got, want any }{
		{m.Secret.Type, "aws_session"}, {m.Secret.Primary, "session_token"},
		{reveal(m.Secret.Fields), map[string]string{"access_key_id": "ASIAEXAMPLE", "secret_access_key": "secret", "session_token": "token",
			"credential_process": `{"Version":1,"AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"secret","SessionToken":"token","Expiration":"2026-03-03T10:21:12Z"}`}},
		{reveal(m.Secret.Env), map[string]string{
			"AWS_ACCESS_KEY_ID": "ASIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token", "AWS_REGION": "eu-west-1",
			"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL": w.url,
			"AWS_CREDENTIAL_EXPIRATION": "2026-03-03T10:21:12Z"}},
		{m.UpstreamExpiresAt, time.Date(2026, 3, 3, 10, 26, 12, 0, time.UTC)},
		{m.UpstreamIDs, []string{"ASIAEXAMPLE"}},
		{m.Trace, map[string]string{
			"access_key_id": "ASIAEXAMPLE", "role_session_name": "abcdefghijklmnop", "role_arn": "arn:aws:iam::123456789012:role/agents",
			"assumed_role_arn": "arn:aws:sts::123456789012:assumed-role/agents/abcdefghijklmnop",
			"assumed_role_id":  "AROAEXAMPLE:abcdefghijklmnop", "source_identity": "abcdefghijklmnop",
			"request_id": "11111111-2222-3333-4444-555555555555", "packed_policy_percent": "7",
		}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Error(diff)
		}
	}
}

// STS takes 900 s to 12 h; what is shorter is bounded by the session policy.
func TestDuration(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.provider(t)
	for _, c := range []struct {
		ttl  time.Duration
		want int
	}{
		{time.Second, 900}, {15 * time.Minute, 900}, {15*time.Minute + time.Millisecond, 901}, {time.Hour, 3600}, {12 * time.Hour, 43200},
	} {
		in := w.request("read")
		in.Version.ExpiresAt = w.clock.Now().Add(c.ttl)
		if _, err := p.Mint(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if got := w.last(t).Get("DurationSeconds"); got != strconv.Itoa(c.want) {
			t.Errorf("for %s STS is asked for %s s; want %d", c.ttl, got, c.want)
		}
	}
}

// Ceph's gateway leaves out what AWS sends (the metadata, the session's id); what is not there is not recorded.
func TestMintWithASparseAnswer(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.answers(body(http.StatusOK, `<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId>`+
		`<Expiration>2026-03-03T10:26:12.000000Z</Expiration><SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken></Credentials>`+
		`<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/agents/abcdefghijklmnop</Arn><AssumeRoleId>1:a</AssumeRoleId></AssumedRoleUser>`+
		`<PackedPolicySize>0</PackedPolicySize></AssumeRoleResult></AssumeRoleResponse>`))
	m, err := w.provider(t).Mint(t.Context(), w.request("read"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range m.Trace {
		if value == "" {
			t.Errorf("%s is recorded as empty", name)
		}
	}
	if m.Trace["assumed_role_id"] != "" || m.Trace["source_identity"] != "" {
		t.Errorf("recorded: %v", m.Trace)
	}
}

// What the session of one task can not do, though its role may do everything.
func TestSessionStaysInItsScope(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	mine, m := r.issue(t, p, ledger, 10*time.Minute)
	other, _ := r.issue(t, p, ledger, 10*time.Minute)
	if !r.alive(t, mine, m.Secret) {
		t.Fatal("cannot read its own task's object")
	}
	r.PutObject(bucket, "tasks/"+mine.TaskID+"x/brief.txt", nil)
	for _, name := range []string{
		"tasks/" + other.TaskID + "/brief.txt", "tasks/" + mine.TaskID + "x/brief.txt", "tasks/" + mine.TaskID, "elsewhere",
	} {
		if r.reads(t, m.Secret, name) {
			t.Errorf("reads %s", name)
		}
	}
	cfg := r.sdkConfig(m.Secret)
	client, roles, tokens := r.s3(m.Secret), iam.NewFromConfig(cfg), sts.NewFromConfig(cfg)
	for name, do := range map[string]func(context.Context) error{
		"write": func(ctx context.Context) error {
			_, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: sdk.String(bucket), Key: sdk.String("tasks/" + mine.TaskID + "/x")})
			return err
		},
		"delete": func(ctx context.Context) error {
			_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: sdk.String(bucket), Key: sdk.String("tasks/" + mine.TaskID + "/brief.txt")})
			return err
		},
		"list another's prefix": func(ctx context.Context) error {
			_, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: sdk.String(bucket), Prefix: sdk.String("tasks/" + other.TaskID + "/")})
			return err
		},
		"list all": func(ctx context.Context) error {
			_, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: sdk.String(bucket)})
			return err
		},
		"chain": func(ctx context.Context) error {
			_, err := tokens.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: &r.config.RoleARN, RoleSessionName: sdk.String("out")})
			return err
		},
		"lift its own denial": func(ctx context.Context) error {
			_, err := roles.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &r.role, PolicyName: sdk.String(aws.PolicyName)})
			return err
		},
		"give itself rights": func(ctx context.Context) error {
			_, err := roles.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &r.role, PolicyName: sdk.String("more"), PolicyDocument: sdk.String(rolePolicy)})
			return err
		},
		"look at its role": func(ctx context.Context) error {
			_, err := roles.GetRole(ctx, &iam.GetRoleInput{RoleName: &r.role})
			return err
		},
	} {
		if err := do(t.Context()); err == nil || !isRefusal(err) {
			t.Errorf("it can %s: %v", name, err)
		}
	}
}

// An end before STS's floor of 15 minutes is an end all the same.
func TestShortLife(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	c, m := r.issue(t, r.replica(t, ledger), ledger, 30*time.Second)
	if left := m.UpstreamExpiresAt.Sub(c.Version.IssuedAt); left < 14*time.Minute {
		t.Fatalf("STS ends it after %s: this proves nothing", left)
	}
	r.clock.To(c.Version.ExpiresAt.Add(-time.Second))
	if !r.alive(t, c, m.Secret) {
		t.Error("dead a second before its end")
	}
	r.clock.To(c.Version.ExpiresAt)
	if r.alive(t, c, m.Secret) {
		t.Error("alive at its end")
	}
}

// The broker's own name for the version is the one by which AWS knows the session, everywhere.
func TestSessionBearsTheVersionsName(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *aws.Config) { c.SourceIdentity, c.Tags = true, map[string]string{"Task": "{{.TaskID}}"} })
	ledger := replicas(t, 1)[0]
	c, m := r.issue(t, r.replica(t, ledger), ledger, time.Hour)
	sessions := r.Sessions()
	if len(sessions) != 1 {
		t.Fatalf("%d sessions", len(sessions))
	}
	s, id := sessions[0], string(c.Version.ID)
	if s.Name != id || s.SourceIdentity != id || s.AccessKeyID != m.UpstreamIDs[0] || s.Tags["Task"] != c.TaskID ||
		s.UserID != m.Trace["assumed_role_id"] || s.ARN != m.Trace["assumed_role_arn"] {
		t.Errorf("the upstream has %+v; we have %v %v", s, m.UpstreamIDs, m.Trace)
	}
	if !m.UpstreamExpiresAt.Equal(s.Expires) {
		t.Errorf("expires at %s, recorded as %s", s.Expires, m.UpstreamExpiresAt)
	}
}
