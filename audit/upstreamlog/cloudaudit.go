package upstreamlog

import (
	"io"
	"iter"
)

// auditLogs is what Google's LogEntries are in: a sink's files, a list, what `gcloud logging read --format json` prints,
// entries.list answers, a table of BigQuery in JSON, messages of Pub/Sub, and Eventarc's events.
var auditLogs = vendor{
	form:  `Google's LogEntries: {"entries":[…]}, a list, or one a line`,
	lists: []string{"entries", "receivedmessages"},
	own:   []string{"protopayload", "protopayloadauditlog"},
	outer: [][]string{{"message", "data"}, {"data"}, {"entries"}, {"receivedMessages"}},
	line:  auditLine,
	other: func(o object) (why string, known bool) {
		known = o.raw("protoPayload", "protopayload_auditlog") == nil &&
			o.has("jsonPayload", "textPayload", "protopayload_requestlog")
		return "a log entry without an AuditLog does not say who called", known
	},
}

// CloudAudit reads Google's Cloud Audit Logs. A call that the broker made for a version has that one's id as its reason.
// Whoever calls may give any reason: it comes last. An account's email is nobody's alone: who had it depends on the time.
func CloudAudit(r io.Reader) iter.Seq2[Line, error] { return auditLogs.lines(r) }

// auditLine reads one LogEntry with an AuditLog. BigQuery calls that protopayload_auditlog.
// https://docs.cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog
func auditLine(o object) Line {
	p := o.child("protoPayload")
	if o.raw("protoPayload") == nil {
		p = o.child("protopayload_auditlog")
	}
	call := p.aside()
	l := Line{At: o.aside().moment("timestamp"), What: what(call.text("serviceName"), call.text("methodName"))}
	if code := call.child("status").text("code"); code != "" && code != "0" {
		l.What = what(l.What, "(refused)")
	}
	caller := p.child("authenticationInfo")
	l.Names = present(Name{"key", caller.text("serviceAccountKeyName")}, Name{"account", caller.text("principalEmail")},
		Name{"subject", caller.text("principalSubject")},
		Name{"reason", p.child("requestMetadata").child("requestAttributes").text("reason")})
	return l
}
