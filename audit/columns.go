package audit

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Columns are what the database keeps beside an event's body, to find it by.
type Columns struct {
	ID, Type, Caller, TaskID, AgentID, Profile, Provider, CredentialID string

	At          time.Time
	UpstreamIDs []string
	Fingerprint []byte
}

// Contradicted lists the columns that do not say what the body says, with what they say. Append fills them from the same
// event, so one that differs was altered later. Values that may be of any length are cut at 512 bytes.
func (c Columns) Contradicted(body []byte) map[string]string {
	var r record
	if json.Unmarshal(body, &r) != nil {
		return map[string]string{"body": "is not an event"}
	}
	fingerprint := Fingerprint(c.Fingerprint)
	differ := map[string]string{}
	for name, v := range map[string][2]string{
		"id": {c.ID, r.ID}, "at": {Stamp(c.At), r.At}, "type": {c.Type, string(r.Type)}, "caller": {c.Caller, r.Caller.Name},
		"task_id": {c.TaskID, r.TaskID}, "agent_id": {c.AgentID, r.AgentID}, "profile": {c.Profile, r.Profile},
		"provider": {c.Provider, r.Provider}, "credential_id": {c.CredentialID, r.CredentialID}, "fingerprint": {fingerprint, r.Fingerprint},
		"upstream_ids": {
			strings.Join(c.UpstreamIDs, separator),
			joinIDs(broker.Event{VersionID: broker.VersionID(r.VersionID), UpstreamIDs: r.UpstreamIDs}),
		},
	} {
		if v[0] != v[1] {
			differ[name] = strings.ToValidUTF8(v[0][:min(len(v[0]), 512)], "")
		}
	}
	if len(differ) == 0 {
		return nil
	}
	return differ
}
