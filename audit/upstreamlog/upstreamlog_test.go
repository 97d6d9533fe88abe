package upstreamlog_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/audit/upstreamlog"
)

const call = `{"eventVersion":"1.09","eventTime":"2026-03-01T12:00:00Z","eventSource":"s3.amazonaws.com","eventName":"GetObject","userIdentity":{
	"type":"AssumedRole","principalId":"AROA1:abcdefghijklmnop","arn":"arn:aws:sts::123456789012:assumed-role/r/abcdefghijklmnop","accessKeyId":"ASIA1",
	"sessionContext":{"sourceIdentity":"abcdefghijklmnop"}},"requestParameters":{"bucketName":"b"},"responseElements":null}`

const mint = `{"eventTime":"2026-03-01T11:00:00Z","eventSource":"sts.amazonaws.com","eventName":"AssumeRole","errorCode":"AccessDenied",
	"userIdentity":{"type":"IAMUser","principalId":"AIDA1","arn":"arn:aws:iam::1:user/broker","accessKeyId":"AKIA1"},"responseElements":{"credentials":{"accessKeyId":"ASIA2"}}}`

func read(t *testing.T, lines iter.Seq2[upstreamlog.Line, error]) (list []upstreamlog.Line, err error) {
	t.Helper()
	for l, err := range lines {
		if err != nil {
			return list, err
		}
		list = append(list, l)
	}
	return list, nil
}

func gzipped(text string) io.Reader {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return &b
}

func TestCloudTrail(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]io.Reader{
		"as it is delivered": gzipped(`{"Records":[` + call + "," + mint + `]}`), "not zipped": strings.NewReader(" {\n\"Records\" : [" + call + "," + mint + "]}\n"),
		"one a line": strings.NewReader(call + "\n" + mint + "\n"), "one a line, zipped": gzipped(call + mint),
	} {
		list, err := read(t, upstreamlog.CloudTrail(r))
		if err != nil || len(list) != 2 {
			t.Fatalf("%s: %d, %v", name, len(list), err)
		}
		if diff := cmp.Diff([]upstreamlog.Name{
			{"key", "ASIA1"}, {"principal", "AROA1:abcdefghijklmnop"},
			{"ARN", "arn:aws:sts::123456789012:assumed-role/r/abcdefghijklmnop"}, {"source identity", "abcdefghijklmnop"},
		}, list[0].Names); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if l := list[0]; l.What != "s3.amazonaws.com GetObject" || l.At.Format("15:04") != "12:00" {
			t.Errorf("%s: %+v", name, l)
		}
		if l := list[1]; l.What != "sts.amazonaws.com AssumeRole (AccessDenied)" || l.Names[0] != (upstreamlog.Name{"new key", "ASIA2"}) {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for name, text := range map[string]string{
		"cut off": `{"Records":[` + call, "cut within": `{"Records":[` + call[:100], "no JSON": "C4n4ry", "a line cut": call + call[:50],
	} {
		if _, err := read(t, upstreamlog.CloudTrail(strings.NewReader(text))); err == nil || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, empty := range []string{"", `{"Records":[]}`} {
		if list, err := read(t, upstreamlog.CloudTrail(strings.NewReader(empty))); len(list) != 0 || err != nil {
			t.Errorf("%q: %v, %v", empty, list, err)
		}
	}
}

// Whole files were once skipped in silence: of two documents one after the other the second, and what was in another form
// than the one known counted as one call of a stranger.
func TestEveryDocumentIsRead(t *testing.T) {
	t.Parallel()
	quoted, _ := json.Marshal(call)
	looked := `{"EventId":"1","EventName":"GetObject","EventTime":1772366400.5,"EventSource":"s3.amazonaws.com","CloudTrailEvent":` + string(quoted) + `}`
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"two files":            {`{"Records":[` + call + "," + mint + `]}` + "\n" + `{"Records":[` + call + `]}`, 3},
		"an empty one between": {`{"Records":[` + call + `]}{"Records":[]}{"Records":[` + call + `]}`, 2},
		"two lists":            {"[" + call + "]\n[" + call + "," + call + "]", 3},
		"of each form":         {call + "[" + call + `]{"Records":[` + call + "]}" + call, 4},
		"not the first field":  {`{"foo":1,"bar":{"Records":[]},"Records":[` + call + "," + call + `],"next":"x"}`, 2},
		"lookup-events":        {`{"Events":[` + looked + "," + looked + `],"NextToken":"x"}`, 2},
		"its lines":            {looked + "\n" + looked, 2},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.text), gzipped(c.text), io.MultiReader(gzipped(c.text[:40]), gzipped(c.text[40:]))} {
			list, err := read(t, upstreamlog.CloudTrail(r))
			if err != nil || len(list) != c.want {
				t.Errorf("%s: %d records, %v; want %d", name, len(list), err, c.want)
			}
			for _, l := range list {
				if len(l.Names) == 0 || l.At.IsZero() || !strings.Contains(l.What, ".amazonaws.com ") {
					t.Errorf("%s: %+v", name, l)
				}
			}
		}
	}
	if list, err := read(t, upstreamlog.CloudAudit(strings.NewReader(`{"entries":[`+googleCall+","+googleMint+`],"nextPageToken":""}`))); err != nil || len(list) != 2 || len(list[0].Names) == 0 {
		t.Errorf("%d, %v", len(list), err)
	}
	for name, text := range map[string]string{
		"cut after the list": `{"Records":[` + call + "]", "more behind it": `{"Records":[` + call + "]} x", "the list closed twice": `{"Records":[` + call + "]]}",
		"closed with another": `{"Records":[` + call + "}", "the second cut off": `{"Records":[` + call + `]}{"Records":[`,
	} {
		if _, err := read(t, upstreamlog.CloudTrail(strings.NewReader(text))); err == nil || !strings.Contains(err.Error(), "it is not the JSON") {
			t.Errorf("%s: %v", name, err)
		}
	}
	zipped, _ := io.ReadAll(gzipped(`{"Records":[` + call + `]}`))
	if _, err := read(t, upstreamlog.CloudTrail(bytes.NewReader(zipped[:len(zipped)-4]))); err == nil {
		t.Error("a zipped file without its end passed for whole")
	}
}

// A record of which nothing is understood is no stranger's call: it is in another log's form.
func TestAnotherForm(t *testing.T) {
	t.Parallel()
	trail, google, stripe := `{"Records":[`+call+`]}`, `{"entries":[`+googleCall+`]}`, `{"created":1767225600,"method":"GET","path":"/v1/x","key_id":"mk_1"}`
	for name, c := range map[string]struct {
		read func(io.Reader) iter.Seq2[upstreamlog.Line, error]
		own  string
		want string
		text []string
	}{
		"CloudTrail": {upstreamlog.CloudTrail, call, `CloudTrail's: {"Records":[…]}`, []string{google, stripe, googleCall, `{"Event":[` + call + "]}", `{"CloudTrailEvent":"C4n4ry"}`, "{}"}},
		"Google":     {upstreamlog.CloudAudit, googleCall, `Google's LogEntries: {"entries":[…]}`, []string{trail, stripe, call, "{}"}},
		"Stripe":     {upstreamlog.Stripe, stripe, "Stripe's: one JSON object a line", []string{trail, google, "{}"}},
	} {
		for _, text := range c.text {
			list, err := read(t, c.read(strings.NewReader(c.own+text+c.own)))
			if len(list) != 3 || err != nil || len(list[2].Names) == 0 || strings.Contains(list[1].NotUnderstood, "C4n4ry") ||
				!strings.HasPrefix(list[1].NotUnderstood, "nothing of it was understood; expected is "+c.want) {
				t.Errorf("%s, given %.40s: %+v, %v", name, text, list, err)
			}
		}
	}
}

const googleCall = `{"timestamp":"2026-03-01T12:00:00.123456Z","protoPayload":{"@type":"type.googleapis.com/google.cloud.audit.AuditLog",
	"serviceName":"storage.googleapis.com","methodName":"storage.objects.get","status":{"code":7,"message":"C4n4ry"},"authenticationInfo":{
	"principalEmail":"agent-1@p.iam.gserviceaccount.com","principalSubject":"serviceAccount:agent-1@p.iam.gserviceaccount.com",
	"serviceAccountKeyName":"//iam.googleapis.com/projects/p/serviceAccounts/agent-1@p.iam.gserviceaccount.com/keys/abc123"}}}`

const googleMint = `{"timestamp":"2026-03-01T11:00:00Z","protoPayload":{"serviceName":"iamcredentials.googleapis.com","methodName":"GenerateAccessToken",
	"authenticationInfo":{"principalEmail":"broker@p.iam.gserviceaccount.com"},"requestMetadata":{"requestAttributes":{"reason":"abcdefghijklmnop"}}}}`

func TestCloudAudit(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]io.Reader{
		"a sink's": gzipped(googleCall + "\n" + googleMint + "\n"), "gcloud's": strings.NewReader("[\n" + googleCall + ",\n" + googleMint + "\n]\n"),
	} {
		list, err := read(t, upstreamlog.CloudAudit(r))
		if err != nil || len(list) != 2 {
			t.Fatalf("%s: %d, %v", name, len(list), err)
		}
		want := upstreamlog.Line{At: list[0].At, What: "storage.googleapis.com storage.objects.get (refused)", Names: []upstreamlog.Name{
			{"key", "//iam.googleapis.com/projects/p/serviceAccounts/agent-1@p.iam.gserviceaccount.com/keys/abc123"},
			{"account", "agent-1@p.iam.gserviceaccount.com"}, {"subject", "serviceAccount:agent-1@p.iam.gserviceaccount.com"},
		}}
		if diff := cmp.Diff(want, list[0]); diff != "" || list[0].At.Format("15:04:05.000000") != "12:00:00.123456" {
			t.Errorf("%s: %s %s", name, diff, list[0].At)
		}
		// Whoever calls may give any reason: it comes after who called.
		if diff := cmp.Diff([]upstreamlog.Name{{"account", "broker@p.iam.gserviceaccount.com"}, {"reason", "abcdefghijklmnop"}}, list[1].Names); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, text := range map[string]string{"a list cut off": "[" + googleCall} {
		if _, err := read(t, upstreamlog.CloudAudit(strings.NewReader(text))); err == nil || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStripe(t *testing.T) {
	t.Parallel()
	const secret = "rk_live_0123456789abcdefghijABCDEFGHIJ"
	list, err := read(t, upstreamlog.Stripe(strings.NewReader(`{"created":1767225600,"method":"GET","path":"/v1/customers?email=C4n4ry","key_id":"mk_1"}
		{"created_at":"2026-01-01T00:00:00Z","method":"POST","url":"/v1/refunds","api_key":{"id":"mk_2","name":"taskpass-x"}}
		{"method":"GET","path":"/v1/x","key":"`+secret+`"}
		{"method":"GET","path":"/v1/y","key":"rk_live_...HIJ"}`)))
	if err != nil || len(list) != 4 {
		t.Fatalf("%d, %v", len(list), err)
	}
	if l := list[0]; l.What != "GET /v1/customers" || l.Names[0].Text != "mk_1" || l.At.Year() != 2026 {
		t.Errorf("%+v", l)
	}
	if l := list[1]; cmp.Diff([]upstreamlog.Name{{"key", "mk_2"}, {"key's name", "taskpass-x"}}, l.Names) != "" || !l.At.Equal(list[0].At) {
		t.Errorf("%+v", l)
	}
	sum := sha256.Sum256([]byte(secret))
	if l := list[2]; len(l.Names) != 0 || !bytes.Equal(l.Fingerprint, sum[:]) {
		t.Errorf("a whole secret is looked for by its hash alone: %+v", l)
	}
	if l := list[3]; l.Names[0].Text != "rk_live_...HIJ" || l.Fingerprint != nil {
		t.Errorf("%+v", l)
	}
}

// Nobody is named by a whole secret, and no name is taken for one.
func TestSecret(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"rk_live_0123456789abcdef", "sk_test_0123456789abcdef", "sk-ant-api03-0123456789_-abcdef", "sk-proj-0123456789abcdef",
		"ya29.c.0123456789abcdef", "tpc_0123456789abcdef0123456789",
	} {
		if sum := sha256.Sum256([]byte(text)); !bytes.Equal(upstreamlog.Secret(text), sum[:]) {
			t.Errorf("%s is taken for a name", text)
		}
	}
	for _, text := range []string{
		"", "ASIAIOSFODNN7EXAMPLE", "rk_live_...HIJ", "mk_1", "demo/sk-ant-api03-0123456789abcdef", "crd_0123456789abcdef0123",
		"abcdefghijklmnop", "sk-ant-api03-...AAAA", "apikey_0123456789abcdef", "a@p.iam.gserviceaccount.com", "AROA1:rk_live_0123456789abcdef",
	} {
		if upstreamlog.Secret(text) != nil {
			t.Errorf("%s is taken for a secret", text)
		}
	}
}

// endless is a log of n records in a form, made as it is read.
type endless struct {
	n    int
	form string
	rest []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.n--; e.n < 0 {
			return 0, io.EOF
		}
		e.rest = fmt.Appendf(nil, e.form, call)
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// However long a file is, it takes the memory of one record; and a record has an end.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"%s\n", `{"more":[1],"Records":[%s]}`} {
		var before, after runtime.MemStats
		n := 0
		for _, err := range upstreamlog.CloudTrail(&endless{n: 25_000, form: form}) { // 15 MB
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 100 {
				runtime.GC()
				runtime.ReadMemStats(&before)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); n != 25_000 || grown > 8<<20 {
			t.Errorf("%s: %d records, %d bytes more", form, n, grown)
		}
	}
	if list, err := read(t, upstreamlog.CloudTrail(strings.NewReader(strings.Repeat(`{"Records":[]}`, upstreamlog.MaxRecord/10)))); len(list) != 0 || err != nil {
		t.Errorf("of empty documents: %d, %v", len(list), err)
	}
	// A record that is too long is passed over, wherever it is and whatever of it is long.
	for _, c := range []struct{ before, after string }{
		{`{"eventName":"`, `"}`}, {`{"Records":[{"eventName":"`, `"}]}`}, {`{"`, `":1}`}, {`[{"x":`, `}]`}, {`{"x":"`, `","Records":[]}`},
	} {
		huge := io.MultiReader(strings.NewReader(call+c.before), io.LimitReader(zeros{}, 2*upstreamlog.MaxRecord), strings.NewReader(c.after+call))
		list, err := read(t, upstreamlog.CloudTrail(huge))
		if n := len(list); err != nil || n < 2 || len(list[0].Names) == 0 || len(list[n-1].Names) == 0 || n == 3 && list[1].NotUnderstood == "" {
			t.Errorf("%s: %d, %v", c.before, n, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}
