package console_test

import (
	"encoding/csv"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var downloads = regexp.MustCompile(`<a href="([^"]+)" download>`)

// sheets follows the links to a page's lists as CSV, and gives them by the list's name.
func (v *visitor) sheets(path string) map[string][]map[string]string {
	v.r.t.Helper()
	found := map[string][]map[string]string{}
	for _, m := range downloads.FindAllStringSubmatch(v.see(path), -1) {
		link := html.UnescapeString(m[1])
		p := v.get(link)
		if p.status != http.StatusOK || !strings.HasPrefix(p.header.Get("Content-Type"), "text/csv") || !strings.HasPrefix(p.header.Get("Content-Disposition"), "attachment") {
			v.r.t.Fatalf("%s answered %d, %v", link, p.status, p.header)
		}
		table, err := csv.NewReader(strings.NewReader(p.body)).ReadAll() // which sees to it that rows are of one length
		must(v.r.t, err)
		name := link[strings.Index(link, "csv=")+4:]
		name, _, _ = strings.Cut(name, "&")
		found[name] = nil
		for _, row := range table[1:] {
			cells := map[string]string{}
			for i, column := range table[0] {
				cells[column] = row[i]
			}
			found[name] = append(found[name], cells)
		}
	}
	return found
}

// Every list that a page shows is there as CSV, and says what the page says.
func TestSheets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.issue("aws", "t", "read")
	r.clock.Advance(30 * time.Minute)
	second := r.refresh(first)
	key := r.issue("pool", "t", "call")
	r.api("orch", "POST", "/v1/credentials/"+key.ID+"/revoke", `{"reason":"=HYPERLINK(\"x\"), \"quoted\", ünï"}`)
	r.api("orch", "POST", "/v1/credentials", `{"task_id":"t3","agent_id":"agent-17","profile":"aws","scopes":["none"]}`)
	r.sign()
	v := r.enter("aud")

	versions := v.sheets("/console/task?id=t")["versions"]
	if len(versions) != 3 {
		t.Fatalf("%d versions: %v", len(versions), versions)
	}
	for i, want := range []map[string]string{
		{"credential_id": key.ID, "version": "1", "task_id": "t", "agent_id": "agent-17", "caller": "orch", "profile": "pool", "provider": "pool", "scopes": `["call"]`,
			"state": "stuck", "alive": "maybe", "alive_how": "stuck", "cause": "revoked", "reason": `'=HYPERLINK("x"), "quoted", ünï`, "upstream_ids": `["models/key-1"]`,
			"ttl_seconds": "3600", "overlap_seconds": ""},
		{"credential_id": first.ID, "version": "2", "alive": "yes", "alive_how": "active", "overlap_seconds": "600", "overlap_with_version": "1", "end_asked_at": "",
			"alive_until": second.ExpiresAt.UTC().Format("2006-01-02T15:04:05.000000Z"), "upstream_ids": `["` + second.Trace["access_key_id"] + `"]`},
		{"credential_id": first.ID, "version": "1", "fingerprint": r.fingerprint(first.ID, 1), "overlap_seconds": ""},
	} {
		for column, text := range want {
			if got, ok := versions[i][column]; got != text || !ok {
				t.Errorf("version %d: %s is %q, want %q", i, column, got, text)
			}
		}
	}
	if versions[0]["end_asked_at"] == "" {
		t.Error("it is not said when the end was asked for")
	}
	if got := v.sheets("/console/credential?id=" + first.ID); len(got["versions"]) != 2 || len(got["events"]) != 4 {
		t.Errorf("the credential: %v", got)
	}
	if got := v.sheets("/console/credentials?profile=aws")["credentials"]; len(got) != 1 || got[0]["version"] != "2" || got[0]["state"] != "active" {
		t.Errorf("the credentials: %v", got)
	}
	if got := v.sheets("/console/trace?q=models/key-1")["trace"]; len(got) != 1 || got[0]["task_id"] != "t" || got[0]["event_id"] == "" {
		t.Errorf("the trace: %v", got)
	}
	if got := v.sheets("/console/tree")["events"]; len(got) < 8 || got[0]["id"] == "" || got[0]["type"] == "" {
		t.Errorf("the tree: %v", got)
	}
	overview := v.sheets("/")
	for name, want := range map[string]string{
		"alive-by-provider": "[map[alive:2 provider:aws] map[alive:1 provider:pool]]", "alive-by-profile": "[map[alive:2 profile:aws] map[alive:1 profile:pool]]",
		"alive-by-agent": "[map[agent:orch/agent-17 alive:3]]", "revocations": "[map[provider:pool state:stuck versions:1]]",
		"pools":    "[map[keys:1 pool:models state:quarantined]]",
		"refusals": fmt.Sprintf("[map[code:unknown_scope from:%s refusals:1]]", r.clock.Now().Truncate(time.Hour).Format("2006-01-02T15:04:05.000000Z")),
	} {
		if got := fmt.Sprint(overview[name]); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := overview["stuck"]; len(got) != 1 || got[0]["credential_id"] != key.ID {
		t.Errorf("stuck: %v", got)
	}
	for _, path := range []string{"/?csv=none", "/console/events?csv=versions", "/console/trace?csv=trace", "/console/event?id=x&csv=events"} {
		if p := v.get(path); p.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, p.status)
		}
	}
}

// The events' CSV is the API's, of just what the page shows, and at the end of each row what the proofs say.
func TestEventsAsCSVAreTheAPIs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	r.api("ops", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"=1+1"}`)
	r.sign()
	v := r.enter("aud")
	status, exported := r.api("aud", "GET", "/v1/audit/events?task_id=t", "", "Accept", "text/csv")
	without := strings.NewReplacer(",proof\r\n", "\r\n", ",verified\r\n", "\r\n")
	if p := v.get("/console/events?task_id=t&csv=events"); status != http.StatusOK || without.Replace(p.body) != exported || p.body == exported {
		t.Errorf("%d, the page's is %s, the API's %s", status, p.body, exported)
	}
	ids, _ := shown(v.see("/console/events?task_id=t&limit=2"))
	var got []string
	for _, row := range v.sheets("/console/events?task_id=t&limit=2")["events"] {
		got = append(got, row["id"])
	}
	if len(ids) != 2 || !slices.Equal(ids, got) {
		t.Errorf("the page shows %v, its CSV has %v", ids, got)
	}
}
