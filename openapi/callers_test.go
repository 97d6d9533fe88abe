package openapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	good := a.tokens["orch"]
	for what, header := range map[string]string{
		"none": "", "no scheme": good, "another scheme": "Basic " + good, "token scheme": "Token " + good, "nothing behind": "Bearer ", "only the word": "Bearer",
		"a ticket": "Bearer " + broker.NewToken(broker.PrefixTicket).Reveal(), "unknown": "Bearer " + broker.NewToken(broker.PrefixCaller).Reveal(),
		"malformed": "Bearer tpc_x", "a slip": "Bearer " + good[:len(good)-1] + "_", "more behind": "Bearer " + good + " x", "two": "Bearer " + good + "," + good,
		"quoted": `Bearer "` + good + `"`, "SQL": "Bearer ' OR 1=1 --", "long": "Bearer " + strings.Repeat("x", 8000),
	} {
		got := a.call("", "GET", "/v1/profiles", "", "Authorization", header)
		p := a.want(got, broker.CodeUnauthenticated)
		if strings.Contains(got.body, good[4:20]) || len(p.Errors) > 0 {
			t.Errorf("%s: %s", what, got.body)
		}
	}
	for what, header := range map[string]string{"lower case": "bearer " + good, "upper case": "BEARER " + good, "spaces": "Bearer   " + good + "  "} {
		if got := a.call("", "GET", "/v1/profiles", "", "Authorization", header); got.status != http.StatusOK {
			t.Errorf("%s: %d", what, got.status)
		}
	}
	// A token is taken from nowhere else.
	for _, headers := range [][]string{{"X-Api-Key", good}, {"Cookie", "token=" + good}, {"Proxy-Authorization", "Bearer " + good}} {
		a.want(a.call("", "GET", "/v1/profiles", "", headers...), broker.CodeUnauthenticated)
	}
	a.want(a.call("", "GET", "/v1/profiles?access_token="+good, ""), broker.CodeUnauthenticated)
}

// What each role may do. A caller that may not is told so where the thing is known to be there for it to see, and
// otherwise learns nothing.
func TestRoles(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	mine := a.issue("t").ID
	get, revoke := "/v1/credentials/"+mine, "/v1/credentials/"+mine+"/revoke"
	for _, c := range []struct {
		as, method, path, body string
		status                 int
	}{
		{"aud", "POST", "/v1/credentials", body(nil), 403}, {"ops", "POST", "/v1/credentials", body(nil), 403},
		{"orch", "GET", get, "", 200}, {"aud", "GET", get, "", 200}, {"ops", "GET", get, "", 200}, {"other", "GET", get, "", 404},
		{"orch", "GET", "/v1/audit/events", "", 403}, {"other", "GET", "/v1/audit/events", "", 403},
		{"aud", "GET", "/v1/audit/events", "", 200}, {"ops", "GET", "/v1/audit/events", "", 200},
		{"aud", "POST", revoke, "", 403}, {"other", "POST", revoke, "", 404}, {"ops", "POST", revoke, "", 200},
	} {
		got := a.call(c.as, c.method, c.path, c.body)
		if got.status != c.status {
			t.Errorf("%s %s %s: %d, want %d: %s", c.as, c.method, c.path, got.status, c.status, got.body)
		}
		if c.status >= 400 {
			a.want(got, map[int]broker.Code{403: broker.CodeForbidden, 404: broker.CodeNotFound}[c.status])
		}
	}
	// The same words for what is not there and for what is another's.
	strange := a.want(a.call("other", "GET", get, ""), broker.CodeNotFound)
	nobodys := a.want(a.call("other", "GET", "/v1/credentials/"+string(broker.NewCredentialID()), ""), broker.CodeNotFound)
	if strange.Detail != nobodys.Detail {
		t.Errorf("%q and %q tell which is there", strange.Detail, nobodys.Detail)
	}
	// What was refused for its role is on the record, as who tried.
	var refused []string
	for _, e := range a.audit("type=credential.refused").Events {
		refused = append(refused, e.Caller.Name+" "+e.Code)
	}
	if diff := cmp.Diff([]string{"ops forbidden", "aud forbidden"}, refused); diff != "" {
		t.Error(diff)
	}
}

func TestEachSeesItsOwn(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.issue("t1")
	a.issued(a.call("other", "POST", "/v1/credentials", request("aws", "t1", `"read"`)))
	for as, want := range map[string]int{"orch": 1, "other": 1, "aud": 2, "ops": 2} {
		page := a.list(as, "task_id=t1")
		if len(page.Credentials) != want {
			t.Errorf("%s sees %d", as, len(page.Credentials))
		}
	}
}

func (a *api) list(as, query string) openapi.CredentialPage {
	a.t.Helper()
	got := a.call(as, "GET", "/v1/credentials?"+query, "")
	if got.status != http.StatusOK {
		a.t.Fatalf("answered %d: %s", got.status, got.body)
	}
	var p openapi.CredentialPage
	strict(a.t, got.body, &p)
	return p
}

func TestProfilesByCaller(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.tokens["nobody"] = a.token("nobody", broker.RoleOrchestrator, time.Hour)
	for as, want := range map[string]string{
		"orch":   "aws:read,write narrow:read pool:call",
		"other":  "aws:read,write pool:call theirs:read,write",
		"aud":    "aws:read,write narrow:read,write pool:call theirs:read,write",
		"ops":    "aws:read,write narrow:read,write pool:call theirs:read,write",
		"nobody": "",
	} {
		got := a.call(as, "GET", "/v1/profiles", "")
		var list openapi.ProfileList
		strict(t, got.body, &list)
		var names []string
		for _, p := range list.Profiles {
			names = append(names, p.Name+":"+strings.Join(p.Scopes, ","))
		}
		if strings.Join(names, " ") != want || !strings.Contains(got.body, `"profiles":[`) {
			t.Errorf("%s sees %q, want %q", as, names, want)
		}
		for _, p := range list.Profiles {
			switch p.Provider {
			case "aws":
				if !p.Capabilities.SelfExpires || p.Capabilities.Revoke != "deny" || p.Capabilities.RevokeLagSeconds != 30 || p.TTLSeconds.Max != 43200 {
					t.Errorf("%s promises %+v", p.Name, p)
				}
			case "pool":
				if p.Capabilities.SelfExpires || p.Capabilities.Revoke != "none" || !p.Capabilities.Disclosed {
					t.Errorf("%s promises %+v", p.Name, p)
				}
			}
		}
	}
}

// The answer to an issuance, field by field, is what can be read afterwards; only the secret is nowhere else.
func TestIssueAndRead(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	got := a.call("orch", "POST", "/v1/credentials", body(map[string]string{"ttl_seconds": "900", "metadata": `{"run":"42"}`, "scopes": `["write","read"]`}))
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" || got.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers: %v", got.header)
	}
	c := a.issued(got)
	now := a.clock.Now().UTC().Truncate(time.Microsecond)
	if c.Version != 1 || c.Status != "active" || !c.IssuedAt.Equal(now) || !c.ExpiresAt.Equal(now.Add(15*time.Minute)) ||
		!c.RefreshAfter.Equal(now.Add(10*time.Minute)) || c.UpstreamExpiresAt.Before(c.ExpiresAt.Add(-time.Second)) || c.Metadata["run"] != "42" ||
		c.Revocation.Mode != "deny" || c.Revocation.LagSeconds != 30 || !slices.Equal(c.Scopes, []string{"read", "write"}) {
		t.Errorf("issued %+v", c)
	}
	if c.Secret.Type != "aws_session" || c.Secret.Env["AWS_SESSION_TOKEN"] == "" || c.Secret.Fields["session_token"] != c.Secret.Env["AWS_SESSION_TOKEN"] ||
		c.Trace["access_key_id"] != c.Secret.Fields["access_key_id"] {
		t.Errorf("secret of type %s, trace %v", c.Secret.Type, c.Trace)
	}
	sessions := a.sandbox.AWS.Sessions()
	if len(sessions) != 1 || sessions[0].AccessKeyID != c.Trace["access_key_id"] || sessions[0].Tags["task"] != "t" {
		t.Errorf("AWS has %+v", sessions)
	}
	read := a.credential(a.call("orch", "GET", "/v1/credentials/"+c.ID, ""), http.StatusOK)
	want := openapi.Credential{
		ID: c.ID, Version: c.Version, TaskID: c.TaskID, Caller: c.Caller, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider, Scopes: c.Scopes,
		Metadata: c.Metadata, Status: c.Status, IssuedAt: c.IssuedAt, ExpiresAt: c.ExpiresAt, RefreshAfter: c.RefreshAfter,
		UpstreamExpiresAt: c.UpstreamExpiresAt, Revocation: c.Revocation, Trace: c.Trace,
	}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("issued (-) and read (+): %s", diff)
	}
	if diff := cmp.Diff([]openapi.Credential{want}, a.list("orch", "").Credentials); diff != "" {
		t.Errorf("issued (-) and listed (+): %s", diff)
	}
}

// What a page holds and the next one begins with is the same for all sizes of page, and stays so while others write.
func TestPages(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const n = 30
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { a.issue(fmt.Sprintf("t%d", i%3)) })
	}
	wg.Wait()
	pages := func(query string, between func()) []string {
		var ids []string
		for cursor := ""; ; {
			page := a.list("orch", query+cursor)
			for _, c := range page.Credentials {
				ids = append(ids, c.ID)
			}
			if page.NextCursor == "" {
				return ids
			}
			cursor = "&cursor=" + page.NextCursor
			between()
		}
	}
	all := pages("limit=500", func() {})
	if len(all) != n || !slices.IsSortedFunc(all, func(x, y string) int { return strings.Compare(y, x) }) || len(slices.Compact(slices.Clone(all))) != n {
		t.Fatalf("%d in one page, newest first: %q", len(all), all)
	}
	for _, limit := range []int{1, 7, 10, 29, 30, 31} {
		got := pages(fmt.Sprintf("limit=%d", limit), func() {
			if limit == 7 {
				a.issued(a.call("other", "POST", "/v1/credentials", request("aws", "t9", `"read"`)))
			}
		})
		if !slices.Equal(got, all) {
			t.Errorf("by %d: %d credentials", limit, len(got))
		}
	}
	// New ones come before the first page, so who goes on is not disturbed.
	got := pages("limit=10", func() { a.issue("late") })
	if !slices.Equal(got, all) {
		t.Errorf("while others are issued: %d credentials", len(got))
	}
	if got := pages("task_id=t1&limit=3", func() {}); len(got) != 10 {
		t.Errorf("of one task: %d", len(got))
	}
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := map[string]string{}
	for i, c := range []string{"t1 a1 aws read", "t1 a2 pool call", "t2 a1 aws read", "t2 a1 narrow read"} {
		w := strings.Fields(c)
		if w[2] == "narrow" {
			w[0] = "research-1"
		}
		got := a.issued(a.call("orch", "POST", "/v1/credentials",
			fmt.Sprintf(`{"task_id":%q,"agent_id":%q,"profile":%q,"scopes":[%q]}`, w[0], w[1], w[2], w[3])))
		id[got.ID] = fmt.Sprint(i)
	}
	for query, want := range map[string]string{
		"": "3 2 1 0", "task_id=t1": "1 0", "agent_id=a1": "3 2 0", "profile=aws": "2 0", "profile=pool&agent_id=a2": "1", "status=active": "3 2 1 0",
		"status=revoked": "", "task_id=t1&agent_id=a1&profile=aws&status=active": "0", "task_id=T1": "", "task_id=t": "",
	} {
		var got []string
		for _, c := range a.list("orch", query).Credentials {
			got = append(got, id[c.ID])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
	var page openapi.CredentialPage
	empty := a.call("orch", "GET", "/v1/credentials?task_id=nobodys", "")
	strict(t, empty.body, &page)
	if strings.TrimSpace(empty.body) != `{"credentials":[]}` {
		t.Errorf("nothing is %s", empty.body)
	}
}
