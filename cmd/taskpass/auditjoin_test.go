package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Of each record of a file it is said whose it is, that it is nobody's here, or that it was not understood; the last is an
// error of the command, after all of the file. Once a field of another type ended the reading, and another form was unknown.
func TestAuditTraceOfOddRecords(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, url := i.serve()
	defer c.stop()
	var issued struct{ Trace map[string]string }
	if err := json.Unmarshal([]byte(mustCall(t, http.StatusCreated, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))), &issued); err != nil {
		t.Fatal(err)
	}
	key, session, id := issued.Trace["access_key_id"], issued.Trace["assumed_role_id"], issued.Trace["role_session_name"]
	if key == "" || session == "" || id == "" {
		t.Fatal(issued.Trace)
	}
	now := time.Now().UTC().Format(time.RFC3339)
	record := func(more string) string {
		return fmt.Sprintf(`{"eventTime":%q,"eventSource":"s3.amazonaws.com","eventName":"GetObject",%s}`, now, more)
	}
	records := []struct{ text, want string }{
		{record(`"userIdentity":{"type":"AssumedRole","accessKeyId":"` + key + `"},"responseElements":"HIDDEN_DUE_TO_SECURITY_REASONS"`), "(active)"},
		{record(`"userIdentity":{"type":"AWSAccount","principalId":"` + session + `"}`), "(active)"},
		{record(`"userIdentity":{"type":"Role","principalId":"` + session + `"}`), "(active)"},
		{record(`"userIdentity":{"principalId":"AWS:` + session + `"},"s3":{}`), "(active)"},
		{`{"detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":` + record(`"userIdentity":{"accessKeyId":"`+key+`"}`) + `}`, "(active)"},
		{record(`"userIdentity":{"accessKeyId":[],"sessionContext":{"sourceIdentity":"` + id + `"}}`),
			"(active), by its source identity only: userIdentity.accessKeyId is a list"},
		{record(`"userIdentity":{"accessKeyId":[],"principalId":"AROANOBODY:x"}`), "→ not understood: userIdentity.accessKeyId is a list"},
		{record(`"userIdentity":null`), "→ not understood: userIdentity is missing"},
		{`{"eventType":"AwsCloudTrailInsight","insightDetails":{}}`, "-  -  → not understood: a CloudTrail Insights event counts calls, and is none"},
		{record(`"userIdentity":{"type":"AWSService","invokedBy":"athena.amazonaws.com"}`), "→ names no credential"},
		{record(`"userIdentity":{"type":"FederatedUser","principalId":"123456789012:bob","accessKeyId":"ASIAFED"}`), "→ unknown here"},
	}
	trace := []string{"audit", "trace", "--database-url-file", filepath.Join(i.dir, "service_url"), "--cloudtrail"}
	texts := make([]string, len(records))
	for n, r := range records {
		texts[n] = r.text
	}
	file := writeFile(t, t.TempDir(), "trail.json", "\ufeff"+`{"Records":[`+strings.Join(texts, ",\r\n")+`]}`)
	r := mustFail(t, 1, []string{"3 of 11 records were not understood: whose they are is not known"}, append(trace, file)...)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != len(records)+1 || lines[len(records)] != "6 of 11 are of tasks here, 1 of them by a weaker name only; 3 were not understood" {
		t.Fatal(r)
	}
	for n, c := range records {
		if !strings.HasSuffix(lines[n], c.want) {
			t.Errorf("line %d is %q, want …%q", n+1, lines[n], c.want)
		}
	}
	file = writeFile(t, t.TempDir(), "trail.json", `{"Records":[`+strings.Join(append(texts[:6], texts[9:]...), ",")+`]}`)
	if r := must(t, append(trace, file)...); !strings.HasSuffix(r.stdout, "\n6 of 8 are of tasks here, 1 of them by a weaker name only\n") {
		t.Error(r)
	}
}
