package audit_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

var (
	at  = time.Date(2026, 3, 1, 13, 30, 0, 123456789, time.FixedZone("CET", 3600))
	end = at.Add(time.Hour)
)

func caller() broker.Caller {
	return broker.Caller{Name: "orch", Role: broker.RoleOrchestrator, Auth: "token:tok_1", Addr: "192.0.2.7", RequestID: "req-1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736"}
}

func agent() broker.Caller {
	return broker.Caller{Name: "orch", Role: broker.RoleAgent, Auth: "token:ttk_1", Addr: "2001:db8::7", RequestID: "req-3", TaskID: "research-1"}
}

func sweeper() broker.Caller { return broker.Caller{Name: "taskpass", Auth: "internal"} }

// about is an event about a credential; change says what is special.
func about(t broker.EventType, by broker.Caller, state broker.State, change func(*broker.Event)) broker.Event {
	e := broker.Event{
		ID: "evt_1", At: at, Type: t, Caller: by, TaskID: "research-1", AgentID: "agent-17", Profile: "aws-research", Provider: "aws",
		Requested: []string{"write", "read", "read"}, Scopes: []string{"read", "write"}, TTL: time.Hour,
		Credential: "crd_1", Version: 1, VersionID: "abcdefghijklmnop", State: state, ExpiresAt: end,
		Upstream: "arn:aws:iam::123456789012:role/taskpass",
	}
	if change != nil {
		change(&e)
	}
	return e
}

func minted(e *broker.Event) {
	e.UpstreamIDs = []string{"ASIA1", "ASIA2"}
	e.Trace = map[string]string{"role_session_name": "abcdefghijklmnop", "access_key_id": "ASIA1"}
	e.Fingerprint = bytes.Repeat([]byte{0xab}, 32)
}

// shapes is each kind of event as the broker writes it. The file's name is the event's type and what follows.
var shapes = map[string]broker.Event{
	"credential.intended": about(broker.EventIntended, caller(), broker.StateIssuing, nil),
	"credential.issued":   about(broker.EventIssued, caller(), broker.StateActive, minted),
	"credential.refused": {
		ID: "evt_1", At: at, Type: broker.EventRefused, Caller: caller(), TaskID: "research-1", AgentID: "agent-17", Profile: "aws-research",
		Provider: "aws", Requested: []string{"own", ""}, TTL: 1500 * time.Millisecond, Code: broker.CodeUnknownScope,
		Faults: []broker.Fault{{Pointer: "/scopes/0", Reason: "names no scope of this profile"}, {Pointer: "/ttl_seconds", Reason: "1.5 s is below this profile's 60 s"}},
	},
	"credential.failed": about(broker.EventFailed, caller(), broker.StateFailed, func(e *broker.Event) {
		e.Code = broker.CodeUpstreamThrottled
	}),
	"credential.lost": about(broker.EventLost, sweeper(), broker.StateLost, func(e *broker.Event) {
		e.Cause, e.Code = broker.CauseAbandoned, broker.CodeUpstreamTimeout
	}),
	"credential.revoke_requested": about(broker.EventRevokeAsked, caller(), broker.StateRevoking, func(e *broker.Event) {
		minted(e)
		e.Cause, e.Reason = broker.CauseRevoked, "<the \"task\" & its \u2028 end>\x00\x1b ü"
	}),
	"credential.revoked": about(broker.EventRevoked, caller(), broker.StateRevoked, func(e *broker.Event) {
		minted(e)
		e.Cause = broker.CauseRevoked
		e.Revocation = broker.Revocation{Result: broker.ResultDenied, EffectiveAt: at.Add(5 * time.Minute), Basis: "role_policy_written"}
	}),
	"credential.expired": about(broker.EventExpired, sweeper(), broker.StateExpired, func(e *broker.Event) {
		e.Cause, e.Revocation = broker.CauseExpired, broker.Revocation{Result: broker.ResultExpires, EffectiveAt: end, Basis: "self_expires"}
	}),
	"credential.revoke_deferred": about(broker.EventRevokeDeferred, caller(), broker.StateRevoking, func(e *broker.Event) {
		e.Cause, e.Revocation = broker.CauseRevoked, broker.Revocation{Result: broker.ResultExpires, EffectiveAt: end}
	}),
	"credential.stuck": about(broker.EventStuck, sweeper(), broker.StateStuck, func(e *broker.Event) {
		e.Cause, e.Code = broker.CauseRevoked, broker.CodeUpstreamRefused
	}),
	"credential.refreshed": about(broker.EventRefreshed, caller(), broker.StateActive, func(e *broker.Event) {
		minted(e)
		e.Version = 2
	}),
	"credential.resolved": about(broker.EventResolved, agent(), broker.StateActive, minted),
	"ticket.created": about(broker.EventTicketCreated, caller(), broker.StateIssuing, func(e *broker.Event) {
		e.ParentTask = "research"
	}),
	"ticket.redeemed": about(broker.EventTicketRedeemed, agent(), broker.StateIssuing, nil),
	"ticket.reused":   about(broker.EventTicketReused, agent(), broker.StateActive, minted),
	"ticket.expired": about(broker.EventTicketExpired, sweeper(), broker.StateFailed, func(e *broker.Event) {
		e.Cause = broker.CauseExpired
	}),
	"task.ended": {
		ID: "evt_1", At: at, Type: broker.EventTaskEnded, Caller: caller(), TaskID: "research-1", ParentTask: "research", Reason: "done",
	},
	"credential.rotated":  about(broker.EventRotated, sweeper(), broker.StateActive, minted),
	"credential.reported": about(broker.EventReported, agent(), "", func(e *broker.Event) { e.Code = broker.CodeUpstreamRefused }),
	"key.added":           key(broker.EventKeyAdded, nil),
	"key.rotating":        key(broker.EventKeyRotating, nil),
	"key.rotated": key(broker.EventKeyRotated, func(e *broker.Event) {
		e.Trace["outcome"], e.Trace["holders"], e.Trace["moved"] = "moved", "40", "40"
	}),
	"key.rotation_aborted": key(broker.EventKeyAborted, nil),
	"key.quarantined":      key(broker.EventKeyQuarantined, func(e *broker.Event) { e.Reason = "3 refusals in a row" }),
	"key.freed":            key(broker.EventKeyFreed, nil),
	"key.retired":          key(broker.EventKeyRetired, nil),
	"upstream.edited":      upstream(broker.EventUpstreamEdited, map[string]string{"policy": "taskpass-revoked"}),
	"upstream.filling":     upstream(broker.EventUpstreamFilling, map[string]string{"used_characters": "7168", "room_characters": "10240"}),
	"upstream.cut_off":     upstream(broker.EventUpstreamCutOff, map[string]string{"issued_before": "2026-03-03T10:00:00Z"}),
	"token.created": {
		ID: "evt_1", At: at, Type: broker.EventTokenCreated, Caller: broker.Caller{Name: "cli:root", Role: broker.RoleOperator, Auth: "database"},
		TTL: 90 * 24 * time.Hour, ExpiresAt: end, Trace: map[string]string{"token_id": "tok_1", "caller": "orch", "role": "orchestrator"},
	},
	"token.revoked": {
		ID: "evt_1", At: at, Type: broker.EventTokenRevoked, Caller: broker.Caller{Name: "cli:root", Role: broker.RoleOperator, Auth: "database"},
		Trace: map[string]string{"token_id": "tok_1", "caller": "orch"},
	},
	"config.loaded": {
		ID: "evt_1", At: at, Type: broker.EventConfigLoaded, Caller: sweeper(), Trace: map[string]string{"aws-research": "aws"},
		Fingerprint: bytes.Repeat([]byte{1}, 32),
	},
	"audit.read": {
		ID: "evt_1", At: at, Type: broker.EventAuditRead, Caller: broker.Caller{Name: "aud", Role: broker.RoleAuditor, Auth: "token:tok_2", RequestID: "req-2"},
		Trace: map[string]string{"task_id": "research-1", "type": "credential.issued"},
	},
	"audit.tampered": {
		ID: "evt_1", At: at, Type: broker.EventAuditTampered, Caller: sweeper(), Reason: "the tree has 500 events, a signed checkpoint 1000",
	},
	"least": {ID: "evt_1", At: at, Type: "x"},
}

// key is an event about a key of a pool.
func key(t broker.EventType, more func(*broker.Event)) broker.Event {
	e := broker.NewKeyEvent(t, broker.Caller{Name: "ops", Role: broker.RoleOperator, Auth: "token:tok_3"}, at, "models", "key-1", bytes.Repeat([]byte{2}, 32))
	e.ID = "evt_1"
	if more != nil {
		more(&e)
	}
	return e
}

// upstream is a finding about a role.
func upstream(t broker.EventType, trace map[string]string) broker.Event {
	e := broker.NewFinding(t, at, "aws", "arn:aws:iam::123456789012:role/taskpass-research", trace)
	e.ID = "evt_1"
	return e
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	for name, e := range shapes {
		got, err := audit.Canonical(e)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
			t.Errorf("%s is no longer written as it was: %s", name, diff)
		}
		if again, _ := audit.Canonical(e); !bytes.Equal(again, got) {
			t.Errorf("%s is written in two ways", name)
		}
		if !json.Valid(got) || bytes.ContainsAny(got, "\n\r\x00") || bytes.Contains(got, []byte(`\u003c`)) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A kind of event that no golden file holds could change its form unseen.
func TestEveryEventHasAGolden(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../broker/event.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(source)) {
		words := strings.Fields(line)
		if len(words) < 4 || words[1] != "EventType" || words[2] != "=" {
			continue
		}
		if name := strings.Trim(words[3], `"`); shapes[name].ID == "" {
			t.Errorf("%s has no golden file", name)
		}
	}
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil || len(files) != len(shapes) {
		t.Errorf("%d golden files for %d shapes (%v)", len(files), len(shapes), err)
	}
}

// Every field of an event is in what is stored: one that is forgotten would be lost for good.
func TestEveryFieldIsRecorded(t *testing.T) {
	t.Parallel()
	empty, err := audit.Canonical(broker.Event{})
	if err != nil {
		t.Fatal(err)
	}
	var e broker.Event
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		v.SetZero()
		fill(v.Field(i))
		got, err := audit.Canonical(e)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, empty) {
			t.Errorf("%s is not recorded", v.Type().Field(i).Name)
		}
	}
}

func fill(v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(at))
		return
	case broker.Revocation:
		v.Set(reflect.ValueOf(broker.Revocation{Result: broker.ResultDenied}))
		return
	}
	switch v.Kind() { //nolint:exhaustive // the kinds that an event has
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(time.Second))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).Kind() == reflect.String {
				v.Field(i).SetString("x")
			}
		}
	default:
		panic(v.Kind())
	}
}
