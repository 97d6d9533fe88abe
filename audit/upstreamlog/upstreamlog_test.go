package upstreamlog_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
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
		if diff := cmp.Diff([]string{"ASIA1", "AROA1:abcdefghijklmnop", "arn:aws:sts::123456789012:assumed-role/r/abcdefghijklmnop", "abcdefghijklmnop"}, list[0].Names); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if l := list[0]; l.What != "s3.amazonaws.com GetObject" || l.At.Format("15:04") != "12:00" {
			t.Errorf("%s: %+v", name, l)
		}
		if l := list[1]; l.What != "sts.amazonaws.com AssumeRole (AccessDenied)" || l.Names[0] != "ASIA2" {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for name, text := range map[string]string{
		"cut off": `{"Records":[` + call, "cut within": `{"Records":[` + call[:100], "no JSON": "C4n4ry", "a list": "[1]", "a line cut": call + call[:50],
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
		want := upstreamlog.Line{At: list[0].At, What: "storage.googleapis.com storage.objects.get (refused)", Names: []string{
			"//iam.googleapis.com/projects/p/serviceAccounts/agent-1@p.iam.gserviceaccount.com/keys/abc123",
			"agent-1@p.iam.gserviceaccount.com", "serviceAccount:agent-1@p.iam.gserviceaccount.com",
		}}
		if diff := cmp.Diff(want, list[0]); diff != "" || list[0].At.Format("15:04:05.000000") != "12:00:00.123456" {
			t.Errorf("%s: %s %s", name, diff, list[0].At)
		}
		if l := list[1]; l.Names[0] != "abcdefghijklmnop" {
			t.Errorf("%s: a call of the broker's own is about the version: %+v", name, l)
		}
	}
	for name, text := range map[string]string{"a list cut off": "[" + googleCall, "no time": `{"timestamp":"C4n4ry"}`} {
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
	if l := list[0]; l.What != "GET /v1/customers" || l.Names[0] != "mk_1" || l.At.Year() != 2026 {
		t.Errorf("%+v", l)
	}
	if l := list[1]; cmp.Diff([]string{"mk_2", "taskpass-x"}, l.Names) != "" || !l.At.Equal(list[0].At) {
		t.Errorf("%+v", l)
	}
	sum := sha256.Sum256([]byte(secret))
	if l := list[2]; len(l.Names) != 0 || !bytes.Equal(l.Fingerprint, sum[:]) {
		t.Errorf("a whole secret is looked for by its hash alone: %+v", l)
	}
	if l := list[3]; l.Names[0] != "rk_live_...HIJ" || l.Fingerprint != nil {
		t.Errorf("%+v", l)
	}
}

// endless is a log of n records, made as it is read.
type endless struct {
	n    int
	rest []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.n--; e.n < 0 {
			return 0, io.EOF
		}
		e.rest = fmt.Appendf(nil, "%s\n", call)
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// However long a file is, it takes the memory of one record; and a record has an end.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	var before, after runtime.MemStats
	n := 0
	for _, err := range upstreamlog.CloudTrail(&endless{n: 50_000}) { // 30 MB
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
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); n != 50_000 || grown > 8<<20 {
		t.Errorf("%d records, %d bytes more", n, grown)
	}
	huge := io.MultiReader(strings.NewReader(`{"eventName":"`), io.LimitReader(zeros{}, 64<<20))
	if _, err := read(t, upstreamlog.CloudTrail(huge)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("%v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}
