package openapi_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/openapi"
	sandboxaws "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// canaries are planted secrets by what they are; outputs are everything that the house said, by where.
type canaries struct {
	t       *testing.T
	a       *api
	secrets map[string]string
	outputs map[string]string
}

// hear keeps an answer that may hold no secret.
func (c *canaries) hear(where string, got answer) answer {
	c.outputs[where] += fmt.Sprint(got.status, got.header, got.body)
	return got
}

// forms are a secret as it is and as simple encodings write it.
func forms(secret string) []string {
	raw := []byte(secret)
	quoted, _ := json.Marshal(secret)
	list := []string{
		secret, strings.Trim(string(quoted), `"`), url.QueryEscape(secret), url.PathEscape(secret),
		hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), strings.Trim(fmt.Sprintf("%d", raw), "[]"),
	}
	// Base64 of a text in which the secret stands anywhere: its three phases, without the characters at the seams.
	for pad := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, pad), raw...))
			list = append(list, text[(pad*4+2)/3:len(text)-2])
		}
	}
	return list
}

func (c *canaries) sweep() {
	c.t.Helper()
	for where, text := range c.outputs {
		for what, secret := range c.secrets {
			for _, form := range forms(secret) {
				if at := strings.Index(text, form); at >= 0 {
					c.t.Errorf("%s is in %s: …%s…", what, where, strings.ReplaceAll(text[max(0, at-120):min(len(text), at+len(form)+40)], "\n", " "))
					break
				}
			}
		}
	}
}

// dump reads every column of every table, and what PostgreSQL itself has to say: its sessions and its log file.
func (c *canaries) dump() {
	c.t.Helper()
	admin := c.a.admin()
	rows, err := admin.Query(c.t.Context(), `SELECT format('%I.%I', table_schema, table_name), column_name FROM information_schema.columns
		WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2`)
	if err != nil {
		c.t.Fatal(err)
	}
	type column struct{ Table, Column string }
	columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	if err != nil || len(columns) < 50 {
		c.t.Fatalf("%d columns: %v", len(columns), err)
	}
	for _, col := range columns {
		name := pgx.Identifier{col.Column}.Sanitize()
		var text *string
		if err := admin.QueryRow(c.t.Context(), "SELECT string_agg("+name+"::text, E'\\n') FROM "+col.Table).Scan(&text); err != nil {
			c.t.Fatal(err)
		}
		if text != nil {
			c.outputs["column "+col.Table+"."+col.Column] = *text
		}
	}
	var sessions, data string
	if err := admin.QueryRow(c.t.Context(), "SELECT coalesce(string_agg(s::text, ' '), '') FROM pg_stat_activity s").Scan(&sessions); err != nil {
		c.t.Fatal(err)
	}
	c.outputs["pg_stat_activity"] = sessions
	if err := admin.QueryRow(c.t.Context(), "SHOW data_directory").Scan(&data); err != nil {
		c.t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(filepath.Dir(data), "postgres.log")); err == nil {
		c.outputs["PostgreSQL's log"] = string(text)
	}
}

// explosive is a provider that fails by a panic with the secret in its value.
type explosive struct {
	broker.Provider
	secret string
}

func (e explosive) Mint(context.Context, broker.Credential) (broker.Minted, error) {
	panic(fmt.Errorf("bad answer: %s", e.secret))
}

func (e explosive) Revoke(context.Context, broker.Credential) (broker.Revocation, error) {
	panic(struct{ Key string }{e.secret})
}

// P7: planted secrets of every kind go through everything that the house does, well and badly; afterwards nothing that it
// said or stored holds one in any form. The answer that issues a secret is the only place where it shows.
func TestCanary(t *testing.T) {
	t.Parallel()
	const poolKey, poolKey2, upstreamWords, panicWords = "sk-live-CANARY-pool-1-5f0c", "sk-live-CANARY-pool-2-77ab", "aws-body-CANARY-91d2", "panic-CANARY-c3c3"
	a := newAPI(t, func(a *api, s *setup) {
		a.write("key-1", poolKey)
		a.write("key-2", poolKey2)
		p := s.broker.Profiles["aws"]
		p.Name, p.Upstream = "explosive", explosive{p.Upstream, panicWords}
		s.broker.Profiles["explosive"] = p
	})
	c := &canaries{t: t, a: a, outputs: map[string]string{}, secrets: map[string]string{
		"a pool key": poolKey, "the second pool key": poolKey2, "AWS's own words": upstreamWords, "a panic's value": panicWords, "the database's password": dbPassword,
		"the broker's AWS key": a.sandbox.BrokerSecretAccessKey,
	}}
	for name, token := range a.tokens {
		c.secrets["the token of "+name] = token
	}
	c.plantKeyset()

	// All goes well.
	issued := a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"metadata": `{"run":"42"}`})))
	c.secrets["a session's key"], c.secrets["a session's token"] = issued.Secret.Fields["secret_access_key"], issued.Secret.Fields["session_token"]
	keyed := a.issued(a.call("orch", "POST", "/v1/credentials", request("pool", "t-pool", `"call"`)))
	if got := keyed.Secret.Fields["api_key"]; got != poolKey && got != poolKey2 {
		t.Fatalf("the pool gave %q: the canary is not planted", got)
	}
	held := a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"delivery": `"ticket"`, "task_token": "true", "task_id": `"t-held"`})))
	c.secrets["a ticket"], c.secrets["a task's token"], a.tokens["task"] = held.Ticket.Value, held.TaskToken, held.TaskToken
	if held.Ticket.Value == "" || held.TaskToken == "" {
		t.Fatal("no ticket or no token to plant")
	}
	redeemed := a.redeem(held.Ticket.Value)
	refreshed := a.call("task", "POST", "/v1/credentials/"+held.ID+"/refresh", "")
	for what, got := range map[string]answer{"redeemed": redeemed, "refreshed": refreshed} {
		var answered openapi.IssuedCredential
		if got.status >= 300 {
			t.Fatalf("%s: %d %s", what, got.status, got.body)
		}
		strict(t, got.body, &answered)
		c.secrets["the "+what+" key"], c.secrets["the "+what+" token"] = answered.Secret.Fields["secret_access_key"], answered.Secret.Fields["session_token"]
	}
	if got := a.call("task", "POST", "/v1/credentials/"+held.ID+"/resolve", ""); !strings.Contains(got.body, c.secrets["the refreshed key"]) {
		t.Fatalf("resolved: %d", got.status)
	}
	c.hear("a second redemption", a.redeem(held.Ticket.Value))
	c.hear("a ticket with a slip", a.redeem(held.Ticket.Value[:39]+"_"))
	c.hear("a watch", a.call("task", "GET", "/v1/credentials/"+held.ID+"/watch?version=1&wait=1s", ""))
	c.hear("a task", a.call("orch", "GET", "/v1/tasks/t-held", ""))
	c.pools(keyed)

	// All goes badly.
	for _, f := range []sandboxaws.Fault{
		{Kind: sandboxaws.ServerError, Body: "<Error><Code>" + upstreamWords + "</Code><Message>" + upstreamWords + "</Message></Error>"},
		{Kind: sandboxaws.ServerError, Body: upstreamWords}, {Kind: sandboxaws.ServerError, Body: `{"__type":"` + upstreamWords + `"}`},
		{Kind: sandboxaws.AccessDenied, Message: upstreamWords}, {Kind: sandboxaws.Throttle, Message: upstreamWords},
		{Kind: sandboxaws.DropReply}, {Kind: sandboxaws.Hang},
	} {
		f.Action = "AssumeRole"
		a.sandbox.AWS.Inject(f)
		if f.Kind == sandboxaws.Hang {
			a.broker.UpstreamTimeout = time.Second
		}
		c.hear("a failed issuance", a.call("orch", "POST", "/v1/credentials", body(nil)))
	}
	a.broker.UpstreamTimeout = time.Minute
	c.hear("a panicking provider", a.call("orch", "POST", "/v1/credentials", body(map[string]string{"profile": `"explosive"`})))
	a.sandbox.AWS.Inject(sandboxaws.Fault{Action: "PutRolePolicy", Kind: sandboxaws.AccessDenied, Message: upstreamWords, Times: 2})
	c.hear("a revocation", a.call("orch", "POST", "/v1/credentials/"+issued.ID+"/revoke", `{"reason":"over"}`))
	c.hear("a revocation", a.call("ops", "POST", "/v1/credentials/"+keyed.ID+"/revoke", ""))
	c.hear("a task's end", a.call("task", "POST", "/v1/tasks/t-held/end", `{"outcome":"done"}`))
	c.misuse()
	for range 4 { // what was lost is ended, through panics and all
		a.clock.Advance(time.Minute)
		_ = a.broker.Sweep(t.Context())
	}

	// Everybody looks at everything.
	for as := range a.tokens {
		for _, path := range []string{"/v1/pools/models/keys", "/v1/credentials?limit=500", "/v1/credentials/" + issued.ID, "/v1/credentials/" + keyed.ID, "/v1/profiles", "/v1/audit/events?limit=1000",
			"/v1/audit/events?order=oldest&limit=1000", "/nowhere"} {
			c.hear(path, a.call(as, "GET", path, ""))
		}
	}
	c.hear("/metrics", a.call("", "GET", "/metrics", ""))
	c.hear("/readyz", a.call("", "GET", "/readyz", ""))
	c.errors()
	c.dump()

	// The database goes away in the middle.
	a.exec("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM taskpass_service")
	c.hear("without the database's rights", a.call("orch", "POST", "/v1/credentials", body(nil)))
	a.store.Close()
	c.hear("without the database", a.call("orch", "POST", "/v1/credentials", body(nil)))
	c.hear("/metrics without the database", a.call("", "GET", "/metrics", ""))
	c.outputs["the log"] = a.log.String()
	if len(c.outputs["the log"]) < 2000 || len(c.outputs["column public.events.body"]) < 2000 {
		t.Errorf("the sweep sees too little: %d bytes of log, %d of events", len(c.outputs["the log"]), len(c.outputs["column public.events.body"]))
	}
	c.sweep()
}

// pools hands keys in, rotates them, and does what can be done to them, well and badly.
func (c *canaries) pools(keyed openapi.IssuedCredential) {
	c.t.Helper()
	a, at := c.a, "/v1/pools/models/keys"
	for i, name := range []string{"handed", "rotated", "again", "aborted", "refused", "retired"} {
		c.secrets["the value "+name] = fmt.Sprintf("sk-handed-CANARY-%d-%s", i, name)
	}
	add := func(name, what string) string {
		return fmt.Sprintf(`{"name":%q,"value":%q,"vendor_id":"key_1","scopes":["call"],"labels":{"a":"b"}}`, name, c.secrets["the value "+what])
	}
	rotate := func(what string) string { return fmt.Sprintf(`{"value":%q}`, c.secrets["the value "+what]) }
	ok := func(where string, got answer) {
		if c.hear(where, got); got.status >= 300 {
			c.t.Errorf("%s: %d %s", where, got.status, got.body)
		}
	}
	ok("a key that is handed in", a.call("ops", "POST", at, add("sealed", "handed")))
	ok("a rotation", a.call("ops", "POST", at+"/sealed/rotate", rotate("rotated")))
	ok("an abort", a.call("ops", "POST", at+"/sealed/abort", `{}`))
	ok("a rotation", a.call("ops", "POST", at+"/sealed/rotate", rotate("again")))
	ok("a quarantine", a.call("ops", "POST", at+"/sealed/quarantine", `{"reason":"seen"}`))
	ok("its end", a.call("ops", "POST", at+"/sealed/free", `{}`))
	ok("a key to retire", a.call("ops", "POST", at, add("old", "retired")))
	ok("a retirement", a.call("ops", "POST", at+"/old/retire", `{}`))
	issued := a.issued(a.call("orch", "POST", "/v1/credentials", strings.Replace(request("pool", "t-sealed", `"call"`), `"agent_id":"`, `"agent_id":"x`, 1)))
	if issued.Trace["key"] == "sealed" && issued.Secret.Fields["api_key"] != c.secrets["the value again"] {
		c.t.Errorf("the holder does not get what was handed in last")
	}
	ok("a report", a.call("orch", "POST", "/v1/credentials/"+keyed.ID+"/reports", `{"status":429,"version":1}`))
	for _, as := range []string{"orch", "aud", "task", "ops"} {
		c.hear("a key that is refused", a.call(as, "POST", at, strings.Replace(add("sealed", "refused"), `"key_1"`, `"a b"`, 1)))
		c.hear("a key that is refused", a.call(as, "POST", at, add("a/b", "refused")))
		c.hear("a key twice", a.call(as, "POST", at, add("sealed", "refused")))
		c.hear("a value as a name", a.call(as, "POST", at, strings.Replace(add("sealed", "refused"), `"sealed"`, `"`+c.secrets["the value refused"]+` "`, 1)))
		c.hear("a key of no pool", a.call(as, "POST", "/v1/pools/none/keys", add("sealed", "refused")))
		c.hear("a rotation of a reference", a.call(as, "POST", at+"/key-1/rotate", rotate("refused")))
		c.hear("a second rotation", a.call(as, "POST", at+"/sealed/rotate", rotate("refused")))
		c.hear("a bad rotation", a.call(as, "POST", at+"/sealed/rotate", `{"value":5,"deadline_seconds":"`+c.secrets["the value refused"]+`"}`))
		c.hear("a report with a secret", a.call(as, "POST", "/v1/credentials/"+keyed.ID+"/reports", `{"status":401,"version":1,"body":"`+c.secrets["a pool key"]+`"}`))
		c.hear("a report with a secret", a.call(as, "POST", "/v1/credentials/"+keyed.ID+"/reports", `{"status":"`+c.secrets["a pool key"]+`","version":1}`))
	}
}

// plantKeyset takes the key material out of the keyset's file.
func (c *canaries) plantKeyset() {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.a.dir, "keyset"))
	if err != nil {
		c.t.Fatal(err)
	}
	var set struct {
		Key []struct {
			KeyData struct{ Value string } `json:"keyData"`
		} `json:"key"`
	}
	if err := json.Unmarshal(text, &set); err != nil || len(set.Key) != 1 || len(set.Key[0].KeyData.Value) < 40 {
		c.t.Fatalf("the keyset has another form: %v", err)
	}
	c.secrets["the keyset"] = set.Key[0].KeyData.Value
	raw, err := base64.StdEncoding.DecodeString(set.Key[0].KeyData.Value)
	if err != nil {
		c.t.Fatal(err)
	}
	c.secrets["the sealing key"] = string(raw[len(raw)-32:])
}

// misuse puts a token, and a key that was found somewhere, wherever a client may put them by mistake.
func (c *canaries) misuse() {
	c.t.Helper()
	a, token := c.a, c.a.tokens["orch"]
	quoted := `"` + token + `"`
	for where, change := range map[string]map[string]string{
		"task_id": {"task_id": quoted}, "agent_id": {"agent_id": quoted}, "profile": {"profile": quoted}, "scopes": {"scopes": "[" + quoted + "]"},
		"ttl_seconds": {"ttl_seconds": quoted}, "a field's name": {token: `"x"`}, "metadata": {"metadata": quoted}, "metadata's key": {"metadata": "{" + quoted + ":5}"},
		"parent_task_id": {"parent_task_id": quoted}, "delivery": {"delivery": quoted},
	} {
		got := a.call("orch", "POST", "/v1/credentials", body(change))
		if got.status != http.StatusCreated {
			c.hear("a request with a token as "+where, got)
		} else {
			c.t.Errorf("a token is taken as %s", where)
		}
	}
	for _, header := range []string{"X-Request-Id", "Content-Type", "Accept", "User-Agent", "X-Api-Key", "Idempotency-Key"} {
		got := a.call("orch", "GET", "/v1/profiles", "", header, token)
		c.hear("a request with a token as "+header, got)
	}
	a.call("orch", "POST", "/v1/credentials", body(nil), "Idempotency-Key", token)
	a.call("orch", "POST", "/v1/credentials", body(nil), "X-Request-Id", token)
	c.hear("a token of another scheme", a.call("", "GET", "/v1/profiles", "", "Authorization", "Basic "+token))
	c.hear("a token of another scheme", a.call("", "GET", "/v1/profiles", "", "Authorization", token))
	c.hear("a token with a slip", a.call("", "GET", "/v1/profiles", "", "Authorization", "Bearer "+token+"x"))
	for _, path := range []string{"/" + token, "/v1/credentials/" + token, "/v1/credentials/" + token + "/revoke", "/v1/profiles/" + token} {
		c.hear("a token in a path", a.call("orch", "GET", path, ""))
		c.hear("a token in a path", a.call("orch", "POST", path, ""))
	}
	c.hear("a token as a method", a.call("orch", token, "/v1/profiles", ""))
	for _, name := range []string{"task_id", "agent_id", "profile", "cursor", "status", "limit", "access_token"} {
		c.hear("a token in a query", a.call("orch", "GET", "/v1/credentials?"+name+"="+token, ""))
	}
	// An auditor who found a key looks for whose it was: by the wrong parameter.
	for _, found := range []string{token, c.secrets["a pool key"]} {
		for _, name := range []string{"upstream_id", "task_id", "caller", "credential_id", "cursor", "type"} {
			c.hear("a search for a secret", a.call("aud", "GET", "/v1/audit/events?"+name+"="+found, ""))
		}
	}
}

// errors are what the house's parts say to each other, for who prints them.
func (c *canaries) errors() {
	c.t.Helper()
	ctx := c.t.Context()
	say := func(err error) {
		for ; err != nil; err = errors.Unwrap(err) {
			c.outputs["errors"] += fmt.Sprintf("%v %+v %#v %s %q\n", err, err, err, err, err)
		}
	}
	caller := broker.Caller{Name: "orch", Role: broker.RoleOrchestrator}
	for _, profile := range []string{"explosive", "pool"} {
		_, err := c.a.broker.Find(ctx, caller, "crd_nobodys")
		say(err)
		for range 3 {
			_, err = c.a.broker.Issue(ctx, caller, broker.Request{TaskID: "t", AgentID: "a", Profile: profile, Scopes: []string{"read"}}, "")
			say(err)
		}
	}
	_, err := c.a.callers.Authenticate(ctx, c.a.tokens["orch"]+"x")
	say(err)
	// A database that is not there, in each way that there is of it not being there.
	for _, change := range []func(*url.URL){
		func(u *url.URL) { u.Path = "/nobodys" },
		func(u *url.URL) { u.User = url.UserPassword("nobody", dbPassword) },
		func(u *url.URL) { u.RawQuery = "host=/nowhere&sslmode=disable" },
		func(u *url.URL) { u.RawQuery = "host=127.0.0.1&port=1&sslmode=disable" },
		func(u *url.URL) { u.RawQuery = "sslmode=nonsense" },
		func(u *url.URL) { u.Host = "[bad" },
	} {
		u, err := url.Parse(c.a.databaseURL().Reveal())
		if err != nil {
			c.t.Fatal(err)
		}
		change(u)
		s, err := store.Open(ctx, store.Config{URL: broker.NewSecret(u.String()), Logger: slog.New(slog.NewTextHandler(c.a.log, nil))})
		if err == nil {
			err = s.Check(ctx, 1)
			s.Close()
		}
		if err == nil {
			c.t.Errorf("the database is there: %s", u.RawQuery)
		}
		say(err)
	}
}
