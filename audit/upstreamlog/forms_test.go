package upstreamlog_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"iter"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/audit/upstreamlog"
)

const session = "AROA1:abcdefghijklmnop"

// The same session has another type and other fields in the trail of another account, and in S3's notifications.
func TestCloudTrailPrincipals(t *testing.T) {
	t.Parallel()
	principal, arn := upstreamlog.Name{Is: "principal", Text: session}, upstreamlog.Name{Is: "ARN", Text: "arn:aws:sts::1:assumed-role/r/abcdefghijklmnop"}
	for user, want := range map[string][]upstreamlog.Name{
		`{"type":"AWSAccount","principalId":"` + session + `","accountId":"1"}`:                                                       {principal},
		`{"type":"AWSAccount","principalId":"` + session + `","arn":"` + arn.Text + `","accessKeyId":""}`:                             {principal, arn},
		`{"type":"Role","principalId":"` + session + `","arn":"` + arn.Text + `"}`:                                                    {principal, arn},
		`{"type":"Unknown","principalId":"` + session + `"}`:                                                                          {principal},
		`{"principalId":"AWS:` + session + `"}`:                                                                                       {principal},
		`{"type":["AssumedRole"],"principalId":"` + session + `"}`:                                                                    {principal},
		`{"type":"AssumedRole","principalId":"` + session + `","invokedBy":"athena.amazonaws.com"}`:                                   {principal},
		`{"type":"FederatedUser","principalId":"1:bob","accessKeyId":"ASIAFED"}`:                                                      {{Is: "key", Text: "ASIAFED"}, {Is: "principal", Text: "1:bob"}},
		`{"type":"AWSService","invokedBy":"athena.amazonaws.com"}`:                                                                    nil,
		`"{\"principalid\":\"` + session + `\"}"`:                                                                                     {principal}, // CloudTrail Lake's
		`{"type":"AssumedRole","principal_id":"` + session + `","sessionContext":{"sourceIdentity":"ya29.aaaaaaaaaaaaaaaaaaaaaaaa"}}`: {principal},
	} {
		list, err := read(t, upstreamlog.CloudTrail(strings.NewReader(`{"eventSource":"aws:s3","eventName":"GetObject","userIdentity":`+user+`}`)))
		if err != nil || len(list) != 1 || cmp.Diff(want, list[0].Names) != "" || len(list[0].Unread) != 0 || list[0].NotUnderstood != "" {
			t.Errorf("%s: %+v, %v", user, list, err)
		}
	}
	hidden := `{"eventName":"AssumeRole","userIdentity":{"type":"AWSAccount","principalId":"AIDA1"},"responseElements":{"credentials":"HIDDEN","assumedRoleUser":{"assumedRoleId":"` + session + `"}}}`
	list, err := read(t, upstreamlog.CloudTrail(strings.NewReader(hidden)))
	if err != nil || list[0].Names[0] != (upstreamlog.Name{Is: "new principal", Text: session}) {
		t.Errorf("%+v, %v", list, err)
	}
}

func quoted(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}

// Each envelope has one call of the session, and a second one is behind it. Once, such files ended at the first record, or
// the call counted as a stranger's.
func TestEnvelopes(t *testing.T) {
	t.Parallel()
	zipped, _ := io.ReadAll(gzipped(`{"messageType":"DATA_MESSAGE","logEvents":[{"id":"1","timestamp":1,"message":` + quoted(call) + `}]}`))
	b64 := base64.StdEncoding.EncodeToString(zipped)
	bus := `{"version":"0","detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":` + call + `}`
	for name, text := range map[string]string{
		"EventBridge": bus, "EventBridge by SQS, in Lambda": `{"Records":[{"messageId":"1","body":` + quoted(bus) + `}]}`,
		"sqs receive-message":     `{"Messages":[{"MessageId":"1","Body":` + quoted(bus) + `}]}`,
		"SNS by SQS":              `{"Messages":[{"Body":` + quoted(`{"Type":"Notification","Message":`+quoted(bus)+`}`) + `}]}`,
		"SNS in Lambda":           `{"Records":[{"EventSource":"aws:sns","Sns":{"Message":` + quoted(bus) + `}}]}`,
		"a subscription":          `{"messageType":"DATA_MESSAGE","owner":"1","logEvents":[{"id":"1","timestamp":1,"message":` + quoted(call) + `}]}`,
		"subscriptions in a list": `[{"logEvents":[{"message":` + quoted(call) + `}]}]`, "a subscription in Lambda": `{"awslogs":{"data":"` + b64 + `"}}`,
		"Kinesis": `{"Records":[{"kinesis":{"data":"` + b64 + `"}}]}`, "kinesis get-records": `{"Records":[{"Data":"` + b64 + `"}],"MillisBehindLatest":0}`,
		"Firehose":            `{"invocationId":"1","records":[{"recordId":"1","data":"` + b64 + `"}]}`,
		"filter-log-events":   `{"events":[{"logStreamName":"x","message":` + quoted(call) + `}],"searchedLogStreams":[]}`,
		"an event data store": `{"eventVersion":"1","eventData":` + call + `}`, "lookup-events, as an object": `{"Events":[{"EventName":"x","CloudTrailEvent":` + call + `}]}`,
		"control message": `{"messageType":"CONTROL_MESSAGE","logEvents":[{"id":"","message":"CWL CONTROL MESSAGE: Checking health of destination"}]}` + call,
	} {
		list, err := read(t, upstreamlog.CloudTrail(strings.NewReader(text+"\n"+call)))
		if err != nil || len(list) != 2 || len(list[0].Names) != 4 || len(list[1].Names) != 4 {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
	entry := base64.StdEncoding.EncodeToString([]byte(googleCall))
	payload := googleCall[strings.Index(googleCall, `"serviceName"`) : len(googleCall)-1]
	for name, text := range map[string]string{
		"Pub/Sub": `[{"ackId":"1","message":{"data":"` + entry + `"}}]`, "a push": `{"message":{"data":"` + entry + `"},"subscription":"s"}`,
		"Eventarc": `{"specversion":"1.0","data":` + googleCall + `}`, "pull": `{"receivedMessages":[{"message":{"data":"` + entry + `"}}]}`,
		"BigQuery": `{"timestamp":"2026-03-01 12:00:00.123456 UTC","protopayload_auditlog":{` + payload + `}`, "pages": `[{"entries":[` + googleCall + `]}]`,
		"protobuf's names": `{"timestamp":{"seconds":"1772366400"},"proto_payload":{"service_name":"s","authentication_info":{"principal_email":"a","principal_subject":"b","service_account_key_name":"c"}}}`,
	} {
		list, err := read(t, upstreamlog.CloudAudit(strings.NewReader(text+googleCall)))
		if err != nil || len(list) != 2 || len(list[0].Names) != 3 || len(list[1].Names) != 3 || list[0].At.Unix() != 1772366400 {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
}

// What is no call is named as that, and is nobody's.
func TestFormsThatAreNoCalls(t *testing.T) {
	t.Parallel()
	deep := call
	for range 7 {
		deep = `{"detail":` + deep + `}`
	}
	type reader = func(io.Reader) iter.Seq2[upstreamlog.Line, error]
	for want, c := range map[string]struct {
		read reader
		text string
	}{
		"Insights":         {upstreamlog.CloudTrail, `{"Records":[{"eventTime":"2026-03-01T12:00:00Z","eventType":"AwsCloudTrailInsight","eventCategory":"Insight","insightDetails":{"eventName":"x"}}]}`},
		"aggregated":       {upstreamlog.CloudTrail, `{"eventName":"x","eventCategory":"Aggregated"}`},
		"digest file":      {upstreamlog.CloudTrail, `{"awsAccountId":"1","digestEndTime":"2026-03-01T12:00:00Z","digestS3Object":"x","logFiles":[]}`},
		"files that it":    {upstreamlog.CloudTrail, `{"Type":"Notification","Message":"{\"s3Bucket\":\"b\",\"s3ObjectKey\":[\"k\"]}"}`},
		"another kind":     {upstreamlog.CloudTrail, `{"detail-type":"Object Created","source":"aws.s3","detail":{"requester":"1"}}`},
		"is not AWS":       {upstreamlog.CloudTrail, `{"detail-type":"AWS API Call via CloudTrail","source":"evil","detail":` + call + `}`},
		"5 envelopes":      {upstreamlog.CloudTrail, deep},
		"detail has no":    {upstreamlog.CloudTrail, `{"detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":[]}`},
		"message has no":   {upstreamlog.CloudTrail, `{"message":"{\"eventName\":"}`},
		"without an Audit": {upstreamlog.CloudAudit, `{"timestamp":"2026-03-01T12:00:00Z","jsonPayload":{"message":"x"}}`},
		"is a text":        {upstreamlog.CloudAudit, `{"timestamp":"2026-03-01T12:00:00Z","protoPayload":"HIDDEN"}`},
		"Stripe event":     {upstreamlog.Stripe, `{"object":"event","created":1772366400,"request":{"id":"req_1"}}`},
		"key_id is a list": {upstreamlog.Stripe, `{"created":1772366400,"key_id":[]}`},
		"expected is":      {upstreamlog.Stripe, `{"created":1772366400}`},
		"not the JSON":     {upstreamlog.Stripe, `["C4n4ry"]`},
	} {
		list, err := read(t, c.read(strings.NewReader(c.text)))
		if err != nil || len(list) != 1 || !strings.Contains(list[0].NotUnderstood, want) || len(list[0].Names) != 0 || !list[0].At.IsZero() {
			t.Errorf("%s: %+v, %v", want, list, err)
		}
	}
}

func utf16Of(text string, little, mark bool) []byte {
	if mark {
		text = "\ufeff" + text
	}
	var b []byte
	for _, u := range utf16.Encode([]rune(text)) {
		if little {
			b = append(b, byte(u), byte(u>>8))
		} else {
			b = append(b, byte(u>>8), byte(u))
		}
	}
	return b
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	text := `{"Records":[` + call + "," + mint + "]}\n"
	zip, _ := io.ReadAll(gzipped(text))
	twice, _ := io.ReadAll(gzipped(string(zip)))
	nul := make([]byte, 3000)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		file []byte
		want int
	}{
		"UTF-8 with a mark": {[]byte("\ufeff" + text), 2}, "two of those": {[]byte("\ufeff" + text + "\ufeff" + text), 4},
		"UTF-16LE": {utf16Of(text, true, true), 2}, "UTF-16BE": {utf16Of(text, false, true), 2},
		"UTF-16LE without a mark": {utf16Of(text, true, false), 2}, "UTF-16BE without a mark": {utf16Of(text, false, false), 2},
		"CRLF": {[]byte(strings.ReplaceAll(text+text, "\n", "\r\n")), 4}, "padded": {join([]byte(text), nul), 2},
		"gzip, padded": {join(zip, nul), 2}, "members": {join(zip, zip), 4}, "members, padded": {join(zip, nul, zip, nul), 4},
		"gzip twice": {twice, 2}, "RFC 7464": {[]byte("\x1e" + call + "\n\x1e" + call + "\n"), 2},
	} {
		for _, file := range [][]byte{c.file, gzippedBytes(c.file)} {
			if list, err := read(t, upstreamlog.CloudTrail(bytes.NewReader(file))); err != nil || len(list) != c.want || len(list[0].Names) == 0 {
				t.Errorf("%s: %d records, %v", name, len(list), err)
			}
		}
	}
	damaged := bytes.Clone(zip)
	damaged[len(damaged)-6] ^= 1
	for want, file := range map[string][]byte{
		"is cut off": join(zip, zip[:len(zip)-1]), "is damaged": damaged, "is followed by something else": join(zip, nul, []byte("x")),
	} {
		list, err := read(t, upstreamlog.CloudTrail(bytes.NewReader(file)))
		if err == nil || !strings.Contains(err.Error(), want) || len(list) < 2 {
			t.Errorf("%s: %d records, %v", want, len(list), err)
		}
	}
	if _, err := read(t, upstreamlog.CloudTrail(bytes.NewReader(zip[:5]))); err == nil || !strings.Contains(err.Error(), "is cut off") {
		t.Error(err)
	}
}

func gzippedBytes(b []byte) []byte {
	z, _ := io.ReadAll(gzipped(string(b)))
	return z
}

func TestTimes(t *testing.T) {
	t.Parallel()
	want := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ms := 250 * time.Millisecond
	for text, after := range map[string]time.Duration{
		`1772366400`: 0, `1772366400000`: 0, `1772366400000000`: 0, `1772366400000000001`: 1, `1772366400.25`: ms, `1.77236640025e9`: ms,
		`1772366400250`: ms, `1772366400250.5`: ms + 500*time.Microsecond, `"1772366400"`: 0, `" 1772366400250 "`: ms, `"1772366400.25"`: ms,
		`"2026-03-01T12:00:00Z"`: 0, `"2026-03-01T13:00:00.25+01:00"`: ms, `"2026-03-01T13:00:00+0100"`: 0, `"20260301T120000Z"`: 0,
		`"2026-03-01 12:00:00.25 UTC"`: ms, `"2026-03-01 12:00:00"`: 0, `"2026-03-01 12:00:00+00:00"`: 0, `"2026-03-01 12:00:00+00"`: 0,
		`"Sun, 01 Mar 2026 12:00:00 GMT"`: 0, `{"seconds":1772366400}`: 0, `{"seconds":"1772366400","nanos":5}`: 0,
	} {
		list, err := read(t, upstreamlog.Stripe(strings.NewReader(`{"method":"GET","created":`+text+`}`)))
		if err != nil || !list[0].At.Equal(want.Add(after)) {
			t.Errorf("%s: %+v, %v", text, list, err)
		}
	}
	for _, text := range []string{`""`, `0`, `-1`, `1e300`, `"1e400"`, `"NaN"`, `"Inf"`, `null`, `[]`, `{}`, `true`, `"0001-01-01T00:00:00Z"`, `9223372036854775807999`} {
		list, err := read(t, upstreamlog.Stripe(strings.NewReader(`{"method":"GET","created":`+text+`}`)))
		if err != nil || len(list) != 1 || !list[0].At.IsZero() || list[0].What != "GET" {
			t.Errorf("%s: %+v, %v", text, list, err)
		}
	}
	list, _ := read(t, upstreamlog.Stripe(strings.NewReader(`{"method":"`+strings.Repeat("é", 5000)+`","created":"x","created_at":`+strconv.Itoa(1772366400)+`}`)))
	if !list[0].At.Equal(want) || len(list[0].What) > 310 {
		t.Errorf("%+v", list)
	}
}
