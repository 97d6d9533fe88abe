package aws_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

func TestFaultsInsteadOfWork(t *testing.T) {
	t.Parallel()
	b := start(t)
	try := func() error {
		_, _, err := b.tryAssume(b.broker(), "crd1", taskOne)
		return err
	}
	b.Inject(aws.Fault{Action: "PutRolePolicy", Kind: aws.AccessDenied}) // for another call
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.Throttle, Times: 2})
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.AccessDenied, Message: "planted"})
	b.Inject(aws.Fault{Kind: aws.ServerError, Body: "not XML: planted"})
	for range 2 {
		err := try()
		wantError(t, err, http.StatusBadRequest, "Throttling")
		if !strings.Contains(err.Error(), "Rate exceeded") {
			t.Error(err)
		}
	}
	err := try()
	wantDenied(t, err)
	if !strings.Contains(err.Error(), "planted") {
		t.Error(err)
	}
	if err := try(); err == nil {
		t.Error("no server error")
	}
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.ServerError})
	wantError(t, try(), http.StatusInternalServerError, "InternalFailure")
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.Throttle, Times: -1})
	for range 3 {
		wantError(t, try(), http.StatusBadRequest, "Throttling")
	}
	if n := len(b.Sessions()); n != 0 {
		t.Errorf("%d sessions were made", n)
	}
	b.ClearFaults()
	if err := try(); err != nil {
		t.Error(err)
	}
	if n := b.AssumeRoleCalls(); n != 9 {
		t.Errorf("%d calls counted", n)
	}
}

func TestFaultVerbatimBody(t *testing.T) {
	t.Parallel()
	b := start(t)
	cfg, _ := b.assume("crd1", taskOne)
	b.Inject(aws.Fault{Kind: aws.ServerError, Body: "secret=planted"})
	r := signed(t, cfg, http.MethodGet, b.url+"/data/tasks/1/a", "", time.Now(), nil)
	reply, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	body := make([]byte, 64)
	n, _ := reply.Body.Read(body)
	if string(body[:n]) != "secret=planted" || reply.StatusCode != http.StatusInternalServerError {
		t.Errorf("%d %q", reply.StatusCode, body[:n])
	}
	b.Inject(aws.Fault{Action: "GetObject", Kind: aws.Throttle})
	_, err = get(t.Context(), cfg, "tasks/1/a")
	wantError(t, err, http.StatusServiceUnavailable, "SlowDown")
}

func TestFaultDropReplyDoesTheWork(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.DropReply})
	_, _, err := b.tryAssume(b.broker(), "lost", taskOne)
	var api smithy.APIError
	if err == nil || errors.As(err, &api) {
		t.Errorf("a lost reply gave %v", err)
	}
	if got := b.Sessions(); len(got) != 1 || got[0].Name != "lost" {
		t.Errorf("sessions: %+v", got)
	}
}

func TestFaultHang(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.Hang, Times: 2})
	client := sts.NewFromConfig(b.broker())
	in := &sts.AssumeRoleInput{RoleArn: sdk.String(roleARN), RoleSessionName: sdk.String("hung")}

	calls := func(n int) <-chan struct{} {
		made := make(chan struct{})
		go func() {
			defer close(made)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for b.AssumeRoleCalls() < n {
				<-tick.C
			}
		}()
		return made
	}
	if _, err := client.AssumeRole(providertest.ExpireAfter(t.Context(), calls(1)), in); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the client went away: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := client.AssumeRole(context.Background(), in)
		done <- err
	}()
	<-calls(2)
	b.Close()
	if err := <-done; err == nil {
		t.Error("the server closed and yet there was an answer")
	}
	if n := len(b.Sessions()); n != 0 {
		t.Errorf("%d sessions were made", n)
	}
}

func TestFaultSlowReply(t *testing.T) {
	t.Parallel()
	b := start(t)
	const delay = 30 * time.Millisecond
	b.Inject(aws.Fault{Action: "AssumeRole", Kind: aws.SlowReply, Delay: delay})
	began := time.Now()
	task, _ := b.assume("slow", taskOne)
	if took := time.Since(began); took < delay {
		t.Errorf("answered after %s", took)
	}
	wantRead(t, task, "tasks/1/a")
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*aws.Config){
		"no key":          func(c *aws.Config) { c.AccessKeyID = "" },
		"account":         func(c *aws.Config) { c.AccountID = "12" },
		"role name":       func(c *aws.Config) { c.Roles[0].Name = "a/b" },
		"no policy":       func(c *aws.Config) { c.Roles[0].Policy = "" },
		"thirteen hours":  func(c *aws.Config) { c.Roles[0].MaxSessionDuration = 13 * time.Hour },
		"role twice":      func(c *aws.Config) { c.Roles = append(c.Roles, c.Roles[0]) },
		"managed policy":  func(c *aws.Config) { c.ManagedPolicies = map[string]string{"arn:aws:iam::aws:policy/X": "{"} },
		"role in account": func(c *aws.Config) { c.Roles[0].AccountID = "x" },
		"policy ARN":      func(c *aws.Config) { c.ManagedPolicies = map[string]string{"arn:aws:iam::1:policy/X": idle} },
		"attached to it":  func(c *aws.Config) { c.Roles[0].AttachedPolicies = []string{overflowARN} },
		"web trust":       func(c *aws.Config) { c.Roles[0].WebTrusts = []aws.WebTrust{{Issuer: "oidc.example.com"}} },
		"user policy":     func(c *aws.Config) { c.UserPolicy = "{" },
	} {
		cfg := aws.Config{AccessKeyID: brokerID, SecretAccessKey: brokerSecret, Roles: []aws.Role{{Name: "agent", Policy: bucketPolicy}}}
		edit(&cfg)
		if _, err := aws.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
