package audit

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// record is the canonical form of an event: JSON with the fields in this order, absent when empty, maps sorted by key,
// times in UTC with microseconds, no escaping of HTML, no white space. These bytes are what is stored; nothing ever
// writes them anew. Golden tests hold the form.
type record struct {
	ID           string            `json:"id"`
	At           string            `json:"at"`
	Type         broker.EventType  `json:"type"`
	Caller       recordCaller      `json:"caller"`
	RequestID    string            `json:"request_id,omitempty"`
	TraceID      string            `json:"trace_id,omitempty"`
	TaskID       string            `json:"task_id,omitempty"`
	ParentTaskID string            `json:"parent_task_id,omitempty"`
	AgentID      string            `json:"agent_id,omitempty"`
	Profile      string            `json:"profile,omitempty"`
	Provider     string            `json:"provider,omitempty"`
	Requested    []string          `json:"requested_scopes,omitempty"`
	Scopes       []string          `json:"scopes,omitempty"`
	TTLSeconds   float64           `json:"ttl_seconds,omitempty"`
	CredentialID string            `json:"credential_id,omitempty"`
	Version      int               `json:"version,omitempty"`
	VersionID    string            `json:"version_id,omitempty"`
	State        broker.State      `json:"state,omitempty"`
	ExpiresAt    string            `json:"expires_at,omitempty"`
	Upstream     string            `json:"upstream,omitempty"`
	UpstreamIDs  []string          `json:"upstream_ids,omitempty"`
	Trace        map[string]string `json:"trace,omitempty"`
	Fingerprint  string            `json:"fingerprint,omitempty"`
	Cause        broker.Cause      `json:"cause,omitempty"`
	Reason       string            `json:"reason,omitempty"`
	Code         broker.Code       `json:"code,omitempty"`
	Reasons      []broker.Fault    `json:"reasons,omitempty"`
	Revocation   *recordRevocation `json:"revocation,omitempty"`
}

type recordCaller struct {
	Name string      `json:"name"`
	Role broker.Role `json:"role,omitempty"`
	Auth string      `json:"auth,omitempty"`
	Addr string      `json:"addr,omitempty"`
}

type recordRevocation struct {
	Result      broker.Result `json:"result"`
	EffectiveAt string        `json:"effective_at,omitempty"`
	Basis       string        `json:"basis,omitempty"`
}

// Canonical gives the bytes by which an event is kept.
func Canonical(e broker.Event) ([]byte, error) {
	r := record{
		ID: e.ID, At: Stamp(e.At), Type: e.Type,
		Caller:    recordCaller{e.Caller.Name, e.Caller.Role, e.Caller.Auth, e.Caller.Addr},
		RequestID: e.Caller.RequestID, TraceID: e.Caller.TraceID, TaskID: e.TaskID, ParentTaskID: e.ParentTask, AgentID: e.AgentID, Profile: e.Profile, Provider: e.Provider,
		Requested: e.Requested, Scopes: e.Scopes, TTLSeconds: e.TTL.Seconds(),
		CredentialID: string(e.Credential), Version: e.Version, VersionID: string(e.VersionID), State: e.State,
		ExpiresAt: Stamp(e.ExpiresAt), Upstream: e.Upstream, UpstreamIDs: e.UpstreamIDs, Trace: e.Trace,
		Cause: e.Cause, Reason: e.Reason, Code: e.Code, Reasons: e.Faults,
	}
	r.Fingerprint = Fingerprint(e.Fingerprint)
	if e.Revocation.Result != broker.ResultNone {
		r.Revocation = &recordRevocation{e.Revocation.Result, Stamp(e.Revocation.EffectiveAt), e.Revocation.Basis}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, err
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}

// Undecodable is the error for an event on the record that is none: somebody else wrote it. It does not quote the event.
func Undecodable() error {
	return broker.Errorf(broker.CodeRecordTampered, "what is stored as an event is none: keep the database as it is, and run `taskpass audit verify`")
}

// Stamp is a time as the canonical form has it; empty for none.
func Stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000Z")
}
