package aws_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

const issuer = "oidc.example/id"

// newRigOn is a rig whose broker is on a role itself: "broker-…", which the platform or an OIDC token gives it.
func newRigOn(t *testing.T, edit ...func(*aws.Config)) (r *rig, brokerRole string) {
	t.Helper()
	clock := providertest.NewClock()
	role := "agents-" + string(broker.NewVersionID())
	brokerRole = "broker-" + role
	arn := "arn:aws:iam::123456789012:role/" + brokerRole
	server, err := sandbox.New(sandbox.Config{
		AccessKeyID: keyID, SecretAccessKey: key, Now: clock.Now, MaxSkew: -1,
		Roles: []sandbox.Role{
			{Name: role, MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy, TrustedARNs: []string{arn}},
			{Name: brokerRole, Policy: rolePolicy, TrustedARNs: []string{"ec2.amazonaws.com"}, WebTrusts: []sandbox.WebTrust{{Issuer: issuer, Subject: "broker"}}},
		},
	})
	must(t, err)
	server.CreateBucket(bucket)
	f := newFront(server)
	web := httptest.NewServer(f)
	transport := &http.Transport{}
	t.Cleanup(func() { f.open(); server.Close(); transport.CloseIdleConnections(); web.Close() })
	r = &rig{Server: server, front: f, clock: clock, client: &http.Client{Transport: transport}, role: role}
	r.config = config(t, web.URL)
	r.config.RoleARN, r.config.AccessKeyID, r.config.SecretAccessKey = server.RoleARN(role), "", ""
	for _, e := range edit {
		e(&r.config)
	}
	return r, brokerRole
}

// sharedFiles writes AWS's own configuration files with a profile "fleet" and points the process at them.
func sharedFiles(t *testing.T, id, secret, token string) {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("[fleet]\naws_access_key_id = %s\naws_secret_access_key = %s\n", id, secret)
	if token != "" {
		text += "aws_session_token = " + token + "\n"
	}
	must(t, os.WriteFile(filepath.Join(dir, "credentials"), []byte(text), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "config"), []byte("[profile fleet]\nregion = ap-south-1\n"), 0o600))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "credentials"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "config"))
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIADECOY") // another source, which must not be taken
	t.Setenv("AWS_SECRET_ACCESS_KEY", "decoy")
}

// A broker on a role gets sessions of an hour at most. It finds that out by itself and asks STS for nothing longer.
func TestChaining(t *testing.T) { // not parallel: the files are found by the environment
	r, brokerRole := newRigOn(t, func(c *aws.Config) { c.ConfigProfile = "fleet" })
	own, err := r.StartSession(sandbox.SessionSpec{Role: brokerRole, Name: "host"})
	must(t, err)
	sharedFiles(t, own.AccessKeyID, own.SecretAccessKey, own.SessionToken)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	if max := p.Capabilities().MaxTTL; max != 12*time.Hour {
		t.Errorf("promises %s before it knows", max)
	}
	list := r.sessions(t, p, ledger, 2, time.Hour) // 3600
	r.live(t, "an hour", list...)
	tooLong := func(p *aws.Provider, asked int) {
		t.Helper()
		before := r.calls("AssumeRole")
		c := providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), time.Hour+time.Second)
		_, err := p.Mint(t.Context(), c)
		silent(t, err)
		e := broker.AsError(err)
		if err == nil || e.Code != broker.CodeTTLOutOfRange || !errors.Is(err, broker.ErrNotMinted) || !strings.Contains(e.Message, "chaining") ||
			!strings.Contains(e.Message, "3600") || len(e.Faults) != 1 || e.Faults[0].Pointer != "/ttl_seconds" {
			t.Errorf("%v %+v", err, e.Faults)
		}
		if n := r.calls("AssumeRole") - before; n != asked {
			t.Errorf("AssumeRole was asked %d times, want %d", n, asked)
		}
	}
	r.Inject(sandbox.Fault{Action: "GetCallerIdentity", Kind: sandbox.AccessDenied, Times: -1})
	tooLong(p, 1) // it cannot find out: STS's own answer is understood
	r.ClearFaults()
	tooLong(p, 0)
	if max := p.Capabilities().MaxTTL; max != time.Hour {
		t.Errorf("promises %s, knowing that it is on a role", max)
	}
	q := r.replica(t, ledger)
	keep(t, q) // a look is enough to find out
	if max := q.Capabilities().MaxTTL; max != time.Hour {
		t.Errorf("after a look it promises %s", max)
	}
	r.end(t, p, ledger, list[0])
	r.dead(t, "a chained session", list[0])
	r.live(t, "its sibling", list[1])
}

// A broker with a user's key has the role's own maximum; a longer TTL is told apart from chaining.
func TestConfigProfile(t *testing.T) { // not parallel: the files are found by the environment
	r := newRig(t, func(c *aws.Config) { c.AccessKeyID, c.SecretAccessKey, c.ConfigProfile = "", "", "fleet" })
	sharedFiles(t, keyID, key, "")
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.live(t, "12 h", r.sessions(t, p, ledger, 1, 12*time.Hour)...)
	if max := p.Capabilities().MaxTTL; max != 12*time.Hour {
		t.Errorf("promises %s", max)
	}
	c := r.config
	c.ConfigProfile = "nobody-has-it"
	_, err := aws.New(t.Context(), c, aws.Deps{})
	silent(t, err)
	if err == nil || !strings.Contains(err.Error(), "profile") {
		t.Errorf("a profile that is not there: %v", err)
	}
}

func TestLongerThanTheRoleAllows(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.provider(t)
	for message, want := range map[string]struct {
		code broker.Code
		says string
	}{
		"The requested DurationSeconds exceeds the MaxSessionDuration set for this role.":                          {broker.CodeTTLOutOfRange, "maximum session duration"},
		"The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.":       {broker.CodeTTLOutOfRange, "chaining"},
		"1 validation error detected: Value 'x' at 'tags.1.member.value' failed to satisfy constraint C4n4ry role": {broker.CodeUpstreamRefused, "tags"},
	} {
		w.answers(func(rw http.ResponseWriter, _ *http.Request) {
			reply(rw, 400, `<ErrorResponse><Error><Code>ValidationError</Code><Message>`+escaped(message)+`</Message></Error></ErrorResponse>`)
		})
		_, err := p.Mint(t.Context(), w.request("read"))
		silent(t, err)
		if e := broker.AsError(err); err == nil || e.Code != want.code || !strings.Contains(e.Message, want.says) || !errors.Is(err, broker.ErrNotMinted) {
			t.Errorf("%s: %v", message, err)
		}
	}
}

// The token file is read anew; an expired token is told as such.
func TestWebIdentity(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	r, brokerRole := newRigOn(t)
	r.config.WebIdentity = &aws.WebIdentity{RoleARN: r.RoleARN(brokerRole), TokenFile: file}
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	if max := p.Capabilities().MaxTTL; max != time.Hour {
		t.Errorf("promises %s: it will be on a role", max)
	}
	rotate := func(token string, life time.Duration) {
		t.Helper()
		must(t, r.RegisterWebIdentity(sandbox.WebIdentity{Token: token, Issuer: issuer, Subject: "broker", Expires: r.clock.Now().Add(life)}))
		must(t, os.WriteFile(file, []byte(token), 0o600))
	}
	rotate("C4n4ry-token-1", 10*time.Minute)
	list := r.sessions(t, p, ledger, 2, time.Hour)
	r.live(t, "with the first token", list...)
	r.clock.Advance(11 * time.Minute)
	_, err := p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), time.Hour))
	silent(t, err)
	if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamRefused || !strings.Contains(e.Message, "expired") || !errors.Is(err, broker.ErrNotMinted) {
		t.Errorf("an expired token: %v", err)
	}
	must(t, os.WriteFile(file, []byte("C4n4ry-nobody-signed-it"), 0o600))
	_, err = p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), time.Hour))
	silent(t, err)
	if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamRefused || !strings.Contains(e.Message, "token file") {
		t.Errorf("a token that nobody knows: %v", err)
	}
	rotate("C4n4ry-token-2", time.Hour)
	r.live(t, "with the next token", r.sessions(t, p, ledger, 1, time.Hour)...)
	r.end(t, p, ledger, list[0])
	r.dead(t, "revoked", list[0])
	for _, s := range r.Sessions() {
		if s.Role == r.role && !strings.HasPrefix(s.ARN, "arn:aws:sts::") {
			t.Error(s.ARN)
		}
	}
}

// Who is not trusted is named, for the operator to put it in the trust policy.
func TestUntrustedBrokerIsNamed(t *testing.T) {
	t.Parallel()
	r, _ := newRigOn(t, func(c *aws.Config) { // a user, and the role trusts another
		c.AccessKeyID, c.SecretAccessKey = providertest.SecretFile(t, keyID), providertest.SecretFile(t, key)
		c.ExternalID, c.SourceIdentity, c.Tags = "C4n4ry-external", true, map[string]string{"Task": "{{.TaskID}}"}
	})
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	_, err := p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), time.Hour))
	silent(t, err)
	e := broker.AsError(err)
	for _, says := range []string{r.config.RoleARN, "does not trust arn:aws:iam::123456789012:user/taskpass-broker", "sts:TagSession", "sts:SetSourceIdentity", "external id"} {
		if e.Code != broker.CodeUpstreamRefused || !strings.Contains(e.Message, says) {
			t.Errorf("%v; it should say %q", err, says)
		}
	}
	if strings.Contains(err.Error(), "Statement") || !errors.Is(err, broker.ErrNotMinted) {
		t.Errorf("%v", err)
	}
}

// "sts_and_iam: accept" drops that one Deny, and nothing else. Tags that are said to be transitive go along.
func TestChainedSessions(t *testing.T) {
	t.Parallel()
	const next = "arn:aws:iam::123456789012:role/next"
	for _, accept := range []string{"", "accept"} {
		t.Run("accept="+accept, func(t *testing.T) {
			t.Parallel()
			clock := providertest.NewClock()
			role := "agents-" + string(broker.NewVersionID())
			server, err := sandbox.New(sandbox.Config{AccessKeyID: keyID, SecretAccessKey: key, Now: clock.Now, MaxSkew: -1, Roles: []sandbox.Role{
				{Name: role, MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy},
				{Name: "next", Policy: rolePolicy, TrustedARNs: []string{"arn:aws:iam::123456789012:role/" + role}},
			}})
			must(t, err)
			f := newFront(server)
			web := httptest.NewServer(f)
			transport := &http.Transport{}
			t.Cleanup(func() { server.Close(); transport.CloseIdleConnections(); web.Close() })
			r := &rig{Server: server, front: f, clock: clock, client: &http.Client{Transport: transport}, role: role, config: config(t, web.URL)}
			r.config.RoleARN, r.config.STSAndIAM = server.RoleARN(role), accept
			r.config.Tags, r.config.TransitiveTags = map[string]string{"Task": "{{.TaskID}}", "Team": "{{.Metadata.team}}"}, []string{"Team"}
			r.config.Scopes["read"] = aws.Scope{Statements: append(r.config.Scopes["read"].Statements,
				aws.Statement{Actions: []string{"sts:AssumeRole", "sts:TagSession"}, Resources: []string{next}})}
			ledger := replicas(t, 1)[0]
			h := r.sessions(t, r.replica(t, ledger), ledger, 1, 10*time.Minute)[0]
			client := sts.NewFromConfig(r.sdkConfig(h.secret))
			_, err = client.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: sdk.String(next), RoleSessionName: sdk.String("chained")})
			if accept == "" {
				if err == nil || !isRefusal(err) {
					t.Errorf("it chains out of its scope: %v", err)
				}
				return
			}
			must(t, err)
			for _, s := range r.Sessions() {
				if s.Role == "next" && (s.Tags["Team"] != "blue" || s.Tags["Task"] != "") {
					t.Errorf("the chained session's tags: %v", s.Tags)
				}
				if s.Role == role && len(statements(t, s.Policy)) != 4 { // three grants, and the end
					t.Errorf("%s", s.Policy)
				}
			}
			r.clock.To(h.Version.ExpiresAt)
			_, err = client.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: sdk.String(next), RoleSessionName: sdk.String("late")})
			if err == nil || !isRefusal(err) || r.alive(t, h.Credential, h.secret) {
				t.Errorf("it has no end: %v", err)
			}
		})
	}
}

// The field credential_process is what AWS's own SDK takes from a process; the environment is what it takes from there.
func TestSDKTakesTheCredential(t *testing.T) { // not parallel: the SDK reads the environment
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	h := r.sessions(t, r.replica(t, ledger), ledger, 1, 10*time.Minute)[0]
	file := filepath.Join(t.TempDir(), "answer")
	must(t, os.WriteFile(file, []byte(h.secret.Fields["credential_process"].Reveal()), 0o600))
	got, err := processcreds.NewProvider("cat " + file).Retrieve(t.Context())
	must(t, err)
	if !got.CanExpire || !got.Expires.Equal(h.Version.ExpiresAt.Truncate(time.Second)) {
		t.Errorf("expires %v at %s; the version at %s", got.CanExpire, got.Expires, h.Version.ExpiresAt)
	}
	for name, value := range h.secret.Env {
		t.Setenv(name, value.Reveal())
	}
	env, err := awsconfig.NewEnvConfig()
	must(t, err)
	if env.Region != "eu-west-1" || os.Getenv("AWS_CREDENTIAL_EXPIRATION") != h.Version.ExpiresAt.UTC().Truncate(time.Second).Format(time.RFC3339) {
		t.Errorf("%s, %s", env.Region, os.Getenv("AWS_CREDENTIAL_EXPIRATION"))
	}
	for from, c := range map[string]sdk.Credentials{"process": got, "environment": env.Credentials} {
		cfg := r.sdkConfig(h.secret)
		cfg.Credentials = credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken)
		out, err := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }).GetObject(t.Context(),
			&s3.GetObjectInput{Bucket: sdk.String(bucket), Key: sdk.String("tasks/" + h.TaskID + "/brief.txt")})
		if err != nil {
			t.Errorf("from the %s: %v", from, err)
			continue
		}
		_ = out.Body.Close()
	}
}

// Without a region it is one of the partition that the role's ARN names; one of another partition is refused.
func TestPartitions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ partition, region, signed, fault string }{
		{"aws", "", "us-east-1", ""}, {"aws", "eu-west-1", "eu-west-1", ""}, {"aws-cn", "", "cn-north-1", ""},
		{"aws-cn", "cn-northwest-1", "cn-northwest-1", ""}, {"aws-us-gov", "", "us-gov-west-1", ""},
		{"aws-us-gov", "us-gov-east-1", "us-gov-east-1", ""},
		{"aws-cn", "us-east-1", "", "region"}, {"aws", "cn-north-1", "", "region"}, {"aws", "us-gov-west-1", "", "region"},
		{"aws-us-gov", "us-east-1", "", "region"}, {"aws-elsewhere", "", "", "region"}, {"aws-elsewhere", "xx-north-1", "xx-north-1", ""},
		{"aws", "eu west", "", "region"}, {"aws", "eu-west-1.evil.example/", "", "region"},
	} {
		var signed string
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if parts := strings.Split(r.Header.Get("Authorization"), "/"); len(parts) > 2 {
				signed = parts[2]
			}
			reply(w, http.StatusOK, strings.Replace(grantedBody, "arn:aws:", "arn:"+c.partition+":", 1))
		}))
		cfg := config(t, web.URL)
		cfg.RoleARN, cfg.Region = "arn:"+c.partition+":iam::123456789012:role/agents", c.region
		faults := cfg.Check()
		if c.fault != "" {
			if len(faults) != 1 || faults[0].Pointer != c.fault {
				t.Errorf("%+v: %v", c, faults)
			}
			web.Close()
			continue
		}
		w := &wire{clock: providertest.NewClock()}
		if _, err := open(t, cfg, nil, w.clock.Now).Mint(t.Context(), w.request("read")); err != nil || signed != c.signed {
			t.Errorf("%+v: signed for %q, %v", c, signed, err)
		}
		web.Close()
	}
}
