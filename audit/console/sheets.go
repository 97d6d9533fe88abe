package console

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// sheet makes a list that a page shows into rows, the first of which names the columns.
type sheet func() [][]string

// writeCSV answers rows (RFC 4180).
func writeCSV(w http.ResponseWriter, name string, rows [][]string) {
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="taskpass-%s.csv"`, name))
	out := csv.NewWriter(w)
	out.UseCRLF = true
	for _, row := range rows {
		for i, cell := range row {
			row[i] = audit.CSVText(cell)
		}
		_ = out.Write(row) // what goes wrong is told by Flush's Error, and then the client is gone
	}
	out.Flush()
}

// eventSheet has the columns of the API's, and after them the kind of the event's mark. Of what is no event, or is archived,
// there is only the id.
func eventSheet(list []entry) sheet {
	return func() [][]string {
		columns := audit.CSVColumns()
		rows := [][]string{append(columns, "proof")}
		for _, e := range list {
			row, err := audit.CSVRow(e.Body)
			if err != nil {
				row = make([]string, len(columns))
				row[0] = e.ID
			}
			rows = append(rows, append(row, e.Mark.Kind))
		}
		return rows
	}
}

// heldColumns are the columns of every list of versions: the names of the API's trace.
var heldColumns = []string{
	"credential_id", "version", "version_id", "task_id", "agent_id", "caller", "profile", "provider", "requested_scopes", "scopes", "ttl_seconds",
	"state", "issued_at", "expires_at", "upstream", "upstream_ids", "trace", "fingerprint", "cause", "reason",
	"alive", "alive_since", "alive_until", "alive_how",
}

func heldRow(h audit.Held) []string {
	return []string{
		h.CredentialID, strconv.Itoa(h.Version), h.VersionID, h.TaskID, h.AgentID, h.Caller, h.Profile, h.Provider,
		audit.CSVCell(h.RequestedScopes, len(h.RequestedScopes)), audit.CSVCell(h.Scopes, len(h.Scopes)), strconv.FormatFloat(h.TTLSeconds, 'f', -1, 64),
		h.State, audit.Stamp(h.IssuedAt), audit.Stamp(h.ExpiresAt), h.Upstream,
		audit.CSVCell(h.UpstreamIDs, len(h.UpstreamIDs)), audit.CSVCell(h.Trace, len(h.Trace)), h.Fingerprint, h.Cause, h.Reason,
		h.Life.Alive, maybe(h.Life.Since), maybe(h.Life.Until), h.Life.How,
	}
}

// held is the version as a trace tells of it.
func (v version) held() audit.Held {
	return audit.Held{
		CredentialID: string(v.ID), Version: v.Version.Number, VersionID: string(v.Version.ID), TaskID: v.TaskID, AgentID: v.AgentID, Caller: v.Caller,
		Profile: v.Profile, Provider: v.Provider, RequestedScopes: v.Requested, Scopes: v.Scopes, TTLSeconds: v.TTL.Seconds(),
		State: string(v.Version.State), IssuedAt: v.Version.IssuedAt, ExpiresAt: v.Version.ExpiresAt, Upstream: v.Version.Upstream,
		UpstreamIDs: v.Version.UpstreamIDs, Trace: v.Version.Trace, Fingerprint: audit.Fingerprint(v.Version.Fingerprint),
		Cause: string(v.Version.Cause), Reason: v.Version.Reason, Life: v.Life,
	}
}

// credentialSheet is credentials, each with the version that is spoken of.
func credentialSheet(list []version) sheet {
	return func() [][]string {
		rows := [][]string{heldColumns}
		for _, v := range list {
			rows = append(rows, heldRow(v.held()))
		}
		return rows
	}
}

// versionSheet is versions with what is known only where all versions of a credential are.
func versionSheet(list []version) sheet {
	return func() [][]string {
		rows := [][]string{append(heldColumns[:len(heldColumns):len(heldColumns)],
			"end_asked_at", "revocation_result", "revocation_effective_at", "revocation_basis", "overlap_seconds", "overlap_with_version")}
		for _, v := range list {
			overlap, with := "", ""
			if v.Overlaps > 0 {
				overlap, with = strconv.FormatFloat(v.Overlaps.Seconds(), 'f', -1, 64), strconv.Itoa(v.With)
			}
			end := v.Version.Revocation
			rows = append(rows, append(heldRow(v.held()), audit.Stamp(v.Asked), string(end.Result), audit.Stamp(end.EffectiveAt), end.Basis, overlap, with))
		}
		return rows
	}
}

// traceSheet is what a trace found. proof is the kind of the mark of all of a version's events together.
func traceSheet(list []holder) sheet {
	return func() [][]string {
		rows := [][]string{append(heldColumns[:len(heldColumns):len(heldColumns)], "parent_task_id", "event_id", "proof")}
		for _, h := range list {
			rows = append(rows, append(heldRow(h.Held), h.ParentTaskID, h.Life.EventID, sum(pointers(h.Story)).Kind))
		}
		return rows
	}
}

// countSheet is numbers under the names of their columns: of what, in which state, how many; or of what and how many.
func countSheet(list []broker.Count, columns ...string) sheet {
	return func() [][]string {
		rows := [][]string{columns}
		for _, c := range list {
			row := []string{c.Of, c.State, strconv.FormatInt(c.N, 10)}
			if len(columns) == 2 {
				row = []string{c.Of, row[2]}
			}
			rows = append(rows, row)
		}
		return rows
	}
}

func maybe(t *time.Time) string {
	if t == nil {
		return ""
	}
	return audit.Stamp(*t)
}
