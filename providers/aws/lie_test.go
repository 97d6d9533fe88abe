package aws_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// Answers of STS in its own form that are not the session that was asked for; and forms of a true one that are.
func TestSTSAnswers(t *testing.T) {
	t.Parallel()
	const end = "2026-03-03T10:26:12Z"
	for _, c := range []struct{ name, old, new string }{
		{"another role", "assumed-role/agents/", "assumed-role/admin/"},
		{"another account", "sts::123456789012:", "sts::999999999999:"},
		{"another partition", "arn:aws:sts", "arn:aws-cn:sts"},
		{"another session", "agents/abcdefghijklmnop", "agents/somebodyelse"},
		{"another session's id", "AROAEXAMPLE:abcdefghijklmnop", "AROAEXAMPLE:somebodyelse"},
		{"another source identity", "<SourceIdentity>abcdefghijklmnop", "<SourceIdentity>somebodyelse"},
		{"no session's name", "<AssumedRoleUser>", "<Nobody>"},
		{"no end", "<Expiration>" + end + "</Expiration>", ""},
		{"an empty end", end, ""},
		{"an end later than asked", end, "2026-03-03T11:26:12Z"},
		{"no key id", "<AccessKeyId>ASIAEXAMPLE", "<AccessKeyId>"},
		{"no secret key", "<SecretAccessKey>secret", "<SecretAccessKey>"},
		{"no token", "<SessionToken>token", "<SessionToken>"},
		{"white space about the key id", "ASIAEXAMPLE", "\n  ASIAEXAMPLE\n "},
		{"a space in the token", "token<", "to ken<"},
		{"CR LF in the secret key", "secret<", "sec\r\nret<"},
		{"another call's answer", "AssumeRoleResponse", "GetSessionTokenResponse"},
		{"a cut document", "</AssumeRoleResponse>", ""},
		{"something after it", "</AssumeRoleResponse>", "</AssumeRoleResponse><html/>"},
		{"true", "", ""},
		{"true, with a BOM", "<AssumeRoleResponse ", "\ufeff<AssumeRoleResponse "},
		{"true, with a fraction", end, "2026-03-03T10:26:12.345Z"},
		{"true, with an offset", end, "2026-03-03T12:26:12+02:00"},
	} {
		text := strings.ReplaceAll(grantedBody, c.old, c.new)
		if c.old == "<AssumedRoleUser>" {
			text = strings.ReplaceAll(text, "</AssumedRoleUser>", "</Nobody>")
		}
		if c.old == "" {
			text = grantedBody
		}
		w := newWire(t)
		w.answers(body(http.StatusOK, text))
		p := w.provider(t, func(cfg *aws.Config) { cfg.SourceIdentity = true })
		in := w.request("read")
		m, err := p.Mint(t.Context(), in)
		if err == nil {
			err = broker.CheckMinted(m, in.Version, p.Capabilities(), w.clock.Now())
		}
		switch {
		case strings.HasPrefix(c.name, "true"):
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case err == nil || broker.AsError(err).Code != broker.CodeUpstreamError:
			t.Errorf("%s: %v; want %s", c.name, err, broker.CodeUpstreamError)
		}
	}
}

// A login page for any call of a revocation is no success, and the session is denied by the next attempt.
func TestRevokeBehindALoginPage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	c, m := r.issue(t, p, ledger, 3600e9)
	c = providertest.Ask(t, ledger, c, broker.CauseRevoked)
	r.lie(t, providertest.Revoke, providertest.LoginPage)
	if done, err := p.Revoke(t.Context(), c); err == nil {
		t.Fatalf("says %+v of a session that works: %t", done, r.alive(t, c, m.Secret))
	}
	done, err := p.Revoke(t.Context(), c)
	if err != nil || done.Result != broker.ResultDenied || r.alive(t, c, m.Secret) {
		t.Errorf("says %+v, %v; alive: %t", done, err, r.alive(t, c, m.Secret))
	}
}
