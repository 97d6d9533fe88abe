package upstreamlog

import (
	"io"
	"iter"
	"time"
)

type trailRecord struct {
	EventTime    string `json:"eventTime"`
	EventSource  string `json:"eventSource"`
	EventName    string `json:"eventName"`
	ErrorCode    string `json:"errorCode"`
	UserIdentity struct {
		Type           string `json:"type"`
		PrincipalID    string `json:"principalId"`
		ARN            string `json:"arn"`
		AccessKeyID    string `json:"accessKeyId"`
		SessionContext struct {
			SourceIdentity string `json:"sourceIdentity"`
		} `json:"sessionContext"`
	} `json:"userIdentity"`
	ResponseElements struct {
		Credentials struct {
			AccessKeyID string `json:"accessKeyId"`
		} `json:"credentials"`
	} `json:"responseElements"`
}

// CloudTrail reads CloudTrail's records: {"Records":[…]} as it delivers them, or one a line. Where the call made
// credentials (AssumeRole), it is those that the line is about.
func CloudTrail(r io.Reader) iter.Seq2[Line, error] {
	return decode(r, func(t trailRecord) Line {
		u := t.UserIdentity
		at, _ := time.Parse(time.RFC3339, t.EventTime)
		l := Line{At: at, What: t.EventSource + " " + t.EventName}
		if t.ErrorCode != "" {
			l.What += " (" + t.ErrorCode + ")"
		}
		l.Names = present(t.ResponseElements.Credentials.AccessKeyID, u.AccessKeyID)
		if u.Type == "AssumedRole" {
			l.Names = present(append(l.Names, u.PrincipalID, u.ARN, u.SessionContext.SourceIdentity)...)
		}
		return l
	})
}
