package aws_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

// withBrokerRole has a role that a broker runs on and that the agent's role trusts.
func withBrokerRole(c *aws.Config) {
	c.Roles = append(c.Roles, aws.Role{
		Name: "broker", RoleID: "AROABROKER", MaxSessionDuration: 12 * time.Hour,
		Policy:    `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:*","sts:*"],"Resource":"*"}]}`,
		WebTrusts: []aws.WebTrust{{Issuer: "oidc.example.com", Subject: "system:serviceaccount:ops:broker", Audience: "sts.amazonaws.com"}},
	})
	c.Roles[0].TrustedARNs = []string{"arn:aws:iam::123456789012:role/broker"}
}

func TestBrokerOnARoleChains(t *testing.T) {
	t.Parallel()
	now := newClock()
	b := start(t, withClock(now), withBrokerRole)
	own, err := b.StartSession(aws.SessionSpec{
		Role: "broker", Name: "i-0abc", Duration: 2 * time.Hour, SourceIdentity: "fleet",
		Tags: map[string]string{"Cluster": "blue", "node": "7"}, TransitiveTagKeys: []string{"cluster"},
	})
	if err != nil || own.Expires.Sub(now.Now()) != 2*time.Hour {
		t.Fatalf("%v, ends %s", err, own.Expires)
	}
	as := b.config(own.AccessKeyID, own.SecretAccessKey, own.SessionToken)
	id, err := sts.NewFromConfig(as).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || *id.Arn != "arn:aws:sts::123456789012:assumed-role/broker/i-0abc" || *id.UserId != "AROABROKER:i-0abc" {
		t.Errorf("%+v, %v", id, err)
	}
	lasting := func(seconds int32) func(*sts.AssumeRoleInput) {
		return func(in *sts.AssumeRoleInput) { in.DurationSeconds = &seconds }
	}
	_, _, err = b.tryAssume(as, "long", "", lasting(3601))
	wantError(t, err, http.StatusBadRequest, "ValidationError")
	if !strings.Contains(err.Error(), "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.") {
		t.Error(err)
	}
	task, _, err := b.tryAssume(as, "crd1", "", lasting(3600), func(in *sts.AssumeRoleInput) { in.Tags = []ststypes.Tag{tag("task", "x")} })
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, task, "tasks/1/a")
	for _, info := range b.Sessions() {
		if info.Name != "crd1" {
			continue
		}
		if diff := cmp.Diff(map[string]string{"Cluster": "blue", "task": "x"}, info.Tags); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"Cluster"}, info.TransitiveTagKeys); diff != "" || info.SourceIdentity != "fleet" {
			t.Error(diff, info.SourceIdentity)
		}
	}
	// What came down the chain is what policies see.
	deny := func(condition string) {
		t.Helper()
		doc := `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":` + condition + `}]}`
		if err := b.SetRolePolicy("agent", "revoked", doc); err != nil {
			t.Fatal(err)
		}
	}
	deny(`{"StringEquals":{"aws:PrincipalTag/node":"7"}}`)
	wantRead(t, task, "tasks/1/a")
	for _, condition := range []string{
		`{"StringEquals":{"aws:PrincipalTag/cluster":"blue"}}`, `{"StringEquals":{"aws:SourceIdentity":"fleet"}}`,
	} {
		deny(condition)
		_, err = get(t.Context(), task, "tasks/1/a")
		wantDenied(t, err)
	}
	now.Advance(2 * time.Hour)
	_, _, err = b.tryAssume(as, "late", "")
	wantError(t, err, http.StatusForbidden, "ExpiredToken")
}

func TestChainingNeedsTheRightToHandDown(t *testing.T) {
	t.Parallel()
	b := start(t, withBrokerRole, func(c *aws.Config) {
		c.Roles[1].Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}]}`
	})
	for action, spec := range map[string]aws.SessionSpec{
		"sts:SetSourceIdentity": {SourceIdentity: "fleet"},
		"sts:TagSession":        {Tags: map[string]string{"a": "b"}, TransitiveTagKeys: []string{"a"}},
		"":                      {Tags: map[string]string{"a": "b"}},
	} {
		spec.Role, spec.Name = "broker", "host"
		own, err := b.StartSession(spec)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = b.tryAssume(b.config(own.AccessKeyID, own.SecretAccessKey, own.SessionToken), "crd1", "")
		if action == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		wantDenied(t, err)
		if !strings.Contains(err.Error(), action) {
			t.Errorf("%s: %v", action, err)
		}
	}
}

func TestStartSessionRefuses(t *testing.T) {
	t.Parallel()
	b := start(t, withBrokerRole)
	for name, spec := range map[string]aws.SessionSpec{
		"no such role":   {Role: "none", Name: "host"},
		"no name":        {Role: "broker"},
		"too long":       {Role: "agent", Name: "host", Duration: 3 * time.Hour},
		"too short":      {Role: "agent", Name: "host", Duration: time.Minute},
		"transitive tag": {Role: "agent", Name: "host", TransitiveTagKeys: []string{"a"}},
	} {
		if _, err := b.StartSession(spec); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if n := len(b.Sessions()); n != 0 {
		t.Errorf("%d sessions", n)
	}
}

func TestTransitiveTagKeys(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.assume("crd1", "", func(in *sts.AssumeRoleInput) {
		in.Tags, in.TransitiveTagKeys = []ststypes.Tag{tag("Task", "7"), tag("own", "x")}, []string{"task"}
	})
	if diff := cmp.Diff([]string{"Task"}, b.Sessions()[0].TransitiveTagKeys); diff != "" {
		t.Error(diff)
	}
	for keys, code := range map[string]string{"other": "InvalidParameterValue", "": "ValidationError"} {
		_, _, err := b.tryAssume(b.broker(), "crd2", "", func(in *sts.AssumeRoleInput) {
			in.Tags, in.TransitiveTagKeys = []ststypes.Tag{tag("task", "7")}, []string{keys}
		})
		wantError(t, err, http.StatusBadRequest, code)
	}
}

// idToken is an identity token as a file would hold it.
type idToken string

func (t idToken) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

func TestWebIdentity(t *testing.T) {
	t.Parallel()
	now := newClock()
	b := start(t, withClock(now), withBrokerRole)
	register := func(token string, edit func(*aws.WebIdentity)) {
		id := aws.WebIdentity{
			Token: token, Issuer: "oidc.example.com", Subject: "system:serviceaccount:ops:broker", Audience: "sts.amazonaws.com",
			Expires: now.Now().Add(10 * time.Minute),
		}
		edit(&id)
		if err := b.RegisterWebIdentity(id); err != nil {
			t.Fatal(err)
		}
	}
	register("good.token", func(*aws.WebIdentity) {})
	register("other.issuer", func(id *aws.WebIdentity) { id.Issuer = "elsewhere.example.com" })
	register("other.subject", func(id *aws.WebIdentity) { id.Subject = "repo:x" })
	register("other.audience", func(id *aws.WebIdentity) { id.Audience = "x" })
	brokerRole := b.RoleARN("broker")
	exchange := func(token, role string) (*sts.AssumeRoleWithWebIdentityOutput, error) {
		return sts.NewFromConfig(b.config("", "", "")).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: &role, RoleSessionName: sdk.String("pod-1"), WebIdentityToken: &token, DurationSeconds: sdk.Int32(7200),
		})
	}
	out, err := exchange("good.token", brokerRole)
	if err != nil || *out.SubjectFromWebIdentityToken != "system:serviceaccount:ops:broker" || *out.Provider != "oidc.example.com" ||
		*out.Audience != "sts.amazonaws.com" || *out.AssumedRoleUser.AssumedRoleId != "AROABROKER:pod-1" ||
		out.Credentials.Expiration.Sub(now.Now()) != 2*time.Hour {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, tc := range []struct {
		token, role string
		status      int
		code        string
	}{
		{"never.registered", brokerRole, http.StatusBadRequest, "InvalidIdentityToken"},
		{"other.issuer", brokerRole, http.StatusForbidden, "AccessDenied"},
		{"other.subject", brokerRole, http.StatusForbidden, "AccessDenied"},
		{"other.audience", brokerRole, http.StatusForbidden, "AccessDenied"},
		{"good.token", roleARN, http.StatusForbidden, "AccessDenied"},
		{"good.token", "arn:aws:iam::123456789012:role/none", http.StatusForbidden, "AccessDenied"},
		{"xyz", brokerRole, http.StatusBadRequest, "ValidationError"},
	} {
		_, err := exchange(tc.token, tc.role)
		wantError(t, err, tc.status, tc.code)
		if strings.Contains(err.Error(), tc.token) {
			t.Errorf("the error repeats the token: %v", err)
		}
	}
	// The SDK's own provider, and what a broker then does with its credentials.
	as := b.config("", "", "")
	as.Credentials = stscreds.NewWebIdentityRoleProvider(sts.NewFromConfig(as), brokerRole, idToken("good.token"))
	task, _, err := b.tryAssume(as, "crd1", taskOne)
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, task, "tasks/1/a")
	_, _, err = b.tryAssume(as, "long", "", func(in *sts.AssumeRoleInput) { in.DurationSeconds = sdk.Int32(3601) })
	wantError(t, err, http.StatusBadRequest, "ValidationError")
	// The user is not in the role's trust, which names a web identity only.
	_, _, err = b.tryAssume(b.broker(), "crd1", "", func(in *sts.AssumeRoleInput) { in.RoleArn = &brokerRole })
	wantDenied(t, err)

	now.Advance(10 * time.Minute)
	_, err = exchange("good.token", brokerRole)
	wantError(t, err, http.StatusBadRequest, "ExpiredTokenException")
}

// TestWebIdentityTakesNothingElseFromTheForm holds the call to the parameters that it has:
// nobody signed the others.
func TestWebIdentityTakesNothingElseFromTheForm(t *testing.T) {
	t.Parallel()
	b := start(t, withBrokerRole)
	if err := b.RegisterWebIdentity(aws.WebIdentity{
		Token: "good.token", Issuer: "oidc.example.com", Subject: "system:serviceaccount:ops:broker", Audience: "sts.amazonaws.com",
		Expires: time.Now().Add(time.Minute),
	}); err != nil {
		t.Fatal(err)
	}
	b.wantReply(b.unsigned(url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "RoleArn": {b.RoleARN("broker")}, "RoleSessionName": {"pod-1"},
		"WebIdentityToken": {"good.token"}, "SourceIdentity": {"chosen"}, "Tags.member.1.Key": {"team"}, "Tags.member.1.Value": {"red"},
	}), http.StatusOK, "")
	if info := b.Sessions()[0]; len(info.Tags) != 0 || info.SourceIdentity != "" {
		t.Errorf("%+v", info)
	}
}

// unsigned is a call of the query protocol that nobody signed.
func (b *bench) unsigned(form url.Values) *http.Request {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, b.url+"/", strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// TestOnlyWebIdentityGoesUnsigned tries each other call without a signature.
func TestOnlyWebIdentityGoesUnsigned(t *testing.T) {
	t.Parallel()
	b := start(t)
	for _, action := range []string{"AssumeRole", "GetCallerIdentity", "PutRolePolicy", "CreatePolicyVersion", ""} {
		form := url.Values{"Action": {action}, "RoleArn": {roleARN}, "RoleSessionName": {"crd1"}, "WebIdentityToken": {"some.token"}}
		b.wantReply(b.unsigned(form), http.StatusForbidden, "MissingAuthenticationToken")
	}
	if n := len(b.Sessions()) + b.AssumeRoleCalls(); n != 0 {
		t.Errorf("%d sessions and calls", n)
	}
}

func TestGetRoleShowsTheWebTrust(t *testing.T) {
	t.Parallel()
	b := start(t, withBrokerRole)
	out, err := iamClient(b.broker()).GetRole(t.Context(), &iam.GetRoleInput{RoleName: sdk.String("broker")})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := url.PathUnescape(*out.Role.AssumeRolePolicyDocument)
	want := `"Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/oidc.example.com"}`
	if err != nil || !strings.Contains(doc, want) || strings.Contains(doc, `"AWS"`) {
		t.Errorf("%s, %v", doc, err)
	}
}
