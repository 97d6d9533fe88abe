package upstreamlog_test

import (
	"bytes"
	"encoding/json"
	"io"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/audit/upstreamlog"
)

var readers = map[string]struct {
	read    func(io.Reader) iter.Seq2[upstreamlog.Line, error]
	records []string // with every field that is read
	list    string   // a document of records
}{
	"CloudTrail": {upstreamlog.CloudTrail, []string{
		call, mint,
		`{"EventName":"GetObject","EventSource":"s3.amazonaws.com","AccessKeyId":"ASIA1","CloudTrailEvent":` + quoted(call) + `}`,
		`{"detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":` + mint + `}`,
		`{"awslogs":{"data":"{}"},"Sns":{"Message":"{}"},"kinesis":{"data":"{}"},"body":"{}","message":"x","logEvents":[]}`,
	}, `{"Records":[%]}`},
	"Google": {upstreamlog.CloudAudit, []string{
		googleCall, googleMint, `{"timestamp":{"seconds":1},"protopayload_auditlog":{"serviceName":"s","status":{"code":1}}}`, `{"message":{"data":"e30="}}`,
	}, `{"entries":[%]}`},
	"Stripe": {upstreamlog.Stripe, []string{
		`{"object":"x","created":1767225600,"created_at":1,"method":"GET","path":"/v1/x","url":"/v1/x","key_id":"mk_1","api_key_id":"mk_2",
			"key_name":"n","api_key":{"id":"mk_3","name":"m"},"key":"rk_live_...HIJ","data":{}}`,
	}, `{"data":[%]}`},
}

// oddities are the values that take a field's place. The last ones are no JSON, but bracketed as if they were.
func oddities() []string {
	return []string{
		`null`, `true`, `5`, `-1.5e300`, `""`, `"HIDDEN_DUE_TO_SECURITY_REASONS"`, `"{"`, `"[]"`, `"\ud800"`, `[]`, `[1]`, `{}`, `[{"a":1}]`,
		`{"id":[],"seconds":{},"data":{"data":[]}}`, "\"\x00\n\xff\"", `NaN`, `-Infinity`, `undefined`, `"\x"`,
		strings.Repeat("[", 10_100) + strings.Repeat("]", 10_100), strings.Repeat(`{"a":`, 10_100) + "1" + strings.Repeat("}", 10_100),
	}
}

// replaced lists the record with each field, of each depth, replaced by a value.
func replaced(record map[string]any, value string) (list []string) {
	const mark = "<<field>>"
	var walk func(m map[string]any)
	walk = func(m map[string]any) {
		for name, old := range m {
			m[name] = mark
			text, _ := json.Marshal(record)
			list = append(list, string(bytes.Replace(text, quotedMark(mark), []byte(value), 1)))
			m[name] = old
			if inner, ok := old.(map[string]any); ok {
				walk(inner)
			}
		}
	}
	walk(record)
	return list
}

func quotedMark(mark string) []byte {
	b, _ := json.Marshal(mark)
	return b
}

// Whatever one field of one record is, the records around it are read as they would be without it, in each form, and it is
// reported itself: with a name, or as a call without one, or as not understood.
func TestAnOddFieldCostsNoOtherRecord(t *testing.T) {
	t.Parallel()
	for name, r := range readers {
		own := r.records[0]
		alone, err := read(t, r.read(strings.NewReader(own)))
		if err != nil || len(alone) != 1 {
			t.Fatal(err)
		}
		tried := 0
		for _, text := range r.records {
			var record map[string]any
			if err := json.Unmarshal([]byte(text), &record); err != nil {
				t.Fatal(err)
			}
			for _, value := range oddities() {
				for _, odd := range replaced(record, value) {
					tried++
					files := []string{strings.Replace(r.list, "%", own+","+odd+","+own, 1), own + "\n" + odd + "\n" + own, own + odd + own,
						"[" + own + "," + odd + "," + own + "]"}
					if len(value) > 10_000 {
						files = files[:2]
					}
					for _, file := range files {
						list, err := read(t, r.read(strings.NewReader(file)))
						if n := len(list); err != nil || n < 2 || !reflect.DeepEqual(alone[0], list[0]) || !reflect.DeepEqual(alone[0], list[n-1]) {
							t.Fatalf("%s: around %.300s: %d records, %v", name, odd, n, err)
						}
						// Of what is only an envelope an empty list is no record.
						if record["message"] == nil && record["detail"] == nil && len(list) < 3 {
							t.Fatalf("%s: %.300s is not reported", name, odd)
						}
					}
				}
			}
		}
		if tried < 100 {
			t.Errorf("%s: only %d were tried", name, tried)
		}
	}
}

// A field that may have named the caller and could not be read is noted; one that may not is not.
func TestUnreadFields(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		`{"eventName":"x","userIdentity":"HIDDEN"}`:                                             {"userIdentity is a text"},
		`{"eventName":"x","userIdentity":null}`:                                                 {"userIdentity is missing"},
		`{"eventName":"x"}`:                                                                     {"userIdentity is missing"},
		`{"eventName":"x","userIdentity":{"type":[],"principalId":{"C4n4ry":1}}}`:               {"userIdentity.principalId is an object"},
		`{"eventName":"x","userIdentity":{"accessKeyId":5}}`:                                    nil,
		`{"eventName":[],"eventTime":{},"errorCode":[],"userIdentity":{"accessKeyId":"ASIA1"}}`: nil,
		`{"eventName":"x","userIdentity":{},"responseElements":{"credentials":"HIDDEN"}}`:       {"responseElements.credentials is a text"},
		`{"eventName":"x","userIdentity":{"sessionContext":true}}`:                              {"userIdentity.sessionContext is true or false"},
		`{"EventName":"x","CloudTrailEvent":"{\"eventName\":"}`:                                 {"CloudTrailEvent has no record in it", "userIdentity is missing"},
	} {
		list, err := read(t, upstreamlog.CloudTrail(strings.NewReader(text)))
		if err != nil || len(list) != 1 || !slices.Equal(list[0].Unread, want) {
			t.Errorf("%s: %+v, %v", text, list, err)
		}
	}
}

func fuzz(f *testing.F, name string) {
	r := readers[name]
	for _, record := range r.records {
		f.Add([]byte(record))
		f.Add([]byte(strings.Replace(r.list, "%", record, 1)))
	}
	own := r.records[0]
	alone, _ := read(&testing.T{}, r.read(strings.NewReader(own)))
	f.Fuzz(func(t *testing.T, file []byte) {
		for l, err := range r.read(bytes.NewReader(file)) {
			if err == nil && l.NotUnderstood != "" && (len(l.Names) > 0 || l.Fingerprint != nil || l.What != "") {
				t.Errorf("%+v", l)
			}
			for _, n := range l.Names {
				if n.Text == "" || upstreamlog.Secret(n.Text) != nil {
					t.Errorf("%+v", l)
				}
			}
		}
		if !json.Valid(file) {
			return
		}
		// A valid value in a field of a record, and as an element beside it, costs no other record.
		for _, between := range []string{`{"x":` + string(file) + `}`, string(file)} {
			list, err := read(t, r.read(strings.NewReader("["+own+","+between+","+own+"]")))
			if n := len(list); err != nil || n < 2 || !reflect.DeepEqual(alone[0], list[0]) || !reflect.DeepEqual(alone[0], list[n-1]) {
				t.Errorf("%d records, %v", n, err)
			}
		}
	})
}

func FuzzCloudTrail(f *testing.F) { fuzz(f, "CloudTrail") }

func FuzzCloudAudit(f *testing.F) { fuzz(f, "Google") }

func FuzzStripe(f *testing.F) { fuzz(f, "Stripe") }
