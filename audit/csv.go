package audit

import (
	"encoding/json"
	"strconv"
	"strings"
)

// CSVColumns are the first line of an event's table. What is a list or a map is a cell of JSON.
func CSVColumns() []string {
	return []string{
		"id", "at", "type", "caller", "caller_role", "caller_auth", "caller_addr", "request_id", "trace_id", "task_id", "parent_task_id", "agent_id",
		"profile", "provider", "requested_scopes", "scopes", "ttl_seconds", "credential_id", "version", "version_id", "state", "expires_at",
		"upstream", "upstream_ids", "trace", "fingerprint", "cause", "reason", "code", "reasons",
		"revocation_result", "revocation_effective_at", "revocation_basis",
	}
}

// CSVRow is an event's cells. One that a spreadsheet would take for a formula begins with an apostrophe.
func CSVRow(body []byte) ([]string, error) {
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, Undecodable()
	}
	revocation := recordRevocation{}
	if r.Revocation != nil {
		revocation = *r.Revocation
	}
	version, ttl := "", ""
	if r.Version != 0 {
		version = strconv.Itoa(r.Version)
	}
	if r.TTLSeconds != 0 {
		ttl = strconv.FormatFloat(r.TTLSeconds, 'f', -1, 64)
	}
	row := []string{
		r.ID, r.At, string(r.Type), r.Caller.Name, string(r.Caller.Role), r.Caller.Auth, r.Caller.Addr, r.RequestID, r.TraceID, r.TaskID, r.ParentTaskID, r.AgentID,
		r.Profile, r.Provider, CSVCell(r.Requested, len(r.Requested)), CSVCell(r.Scopes, len(r.Scopes)), ttl, r.CredentialID, version, r.VersionID, string(r.State), r.ExpiresAt,
		r.Upstream, CSVCell(r.UpstreamIDs, len(r.UpstreamIDs)), CSVCell(r.Trace, len(r.Trace)), r.Fingerprint, string(r.Cause), r.Reason, string(r.Code), CSVCell(r.Reasons, len(r.Reasons)),
		string(revocation.Result), revocation.EffectiveAt, revocation.Basis,
	}
	for i, c := range row {
		row[i] = CSVText(c)
	}
	return row, nil
}

// CSVText is a caller's words as a cell: a spreadsheet does not take it for a formula, and shows all of it.
func CSVText(text string) string {
	text = Visible(text)
	if text != "" && strings.ContainsRune("=+-@\t\r\n", rune(text[0])) {
		return "'" + text
	}
	return text
}

// CSVCell is a list or a map of n as a cell: JSON, or nothing for none.
func CSVCell(v any, n int) string {
	if n == 0 {
		return ""
	}
	text, _ := json.Marshal(v) // texts, lists and maps of them: always possible
	return string(text)
}
