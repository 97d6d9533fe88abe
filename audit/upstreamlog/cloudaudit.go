package upstreamlog

import (
	"io"
	"iter"
	"strings"
	"time"
)

// auditEntry is the part of a LogEntry with an AuditLog in it that names who called.
// https://docs.cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog
type auditEntry struct {
	Timestamp time.Time `json:"timestamp"`
	Payload   struct {
		ServiceName string `json:"serviceName"`
		MethodName  string `json:"methodName"`
		Status      struct {
			Code int `json:"code"`
		} `json:"status"`
		Authentication struct {
			PrincipalEmail   string `json:"principalEmail"`
			PrincipalSubject string `json:"principalSubject"`
			KeyName          string `json:"serviceAccountKeyName"`
		} `json:"authenticationInfo"`
		Metadata struct {
			Attributes struct {
				Reason string `json:"reason"`
			} `json:"requestAttributes"`
		} `json:"requestMetadata"`
	} `json:"protoPayload"`
}

// CloudAudit reads Google's Cloud Audit Logs: entries one a line, as a sink writes them, in a list, as `gcloud logging read
// --format json` prints them, or as entries.list answers them. A call that the broker made for a version bears that one's id
// as its reason. Whoever calls may give any reason: it comes last. An account's email is no one's alone: whose it was
// depends on the time.
func CloudAudit(r io.Reader) iter.Seq2[Line, error] {
	return decode(r, `Google's LogEntries: {"entries":[…]}, a list, or one a line`, func(e auditEntry) Line {
		p := e.Payload
		l := Line{At: e.Timestamp, What: strings.TrimSpace(p.ServiceName + " " + p.MethodName)}
		if p.Status.Code != 0 {
			l.What += " (refused)"
		}
		a := p.Authentication
		l.Names = present(Name{"key", a.KeyName}, Name{"account", a.PrincipalEmail}, Name{"subject", a.PrincipalSubject},
			Name{"reason", p.Metadata.Attributes.Reason})
		return l
	})
}
