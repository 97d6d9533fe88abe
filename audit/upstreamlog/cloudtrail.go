package upstreamlog

import (
	"encoding/json"
	"io"
	"iter"
	"strings"
)

type trailRecord struct {
	Whole        string          `json:"CloudTrailEvent"` // the record itself, in what lookup-events prints
	EventTime    json.RawMessage `json:"eventTime"`
	EventSource  string          `json:"eventSource"`
	EventName    string          `json:"eventName"`
	ErrorCode    string          `json:"errorCode"`
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

// CloudTrail reads CloudTrail's records: {"Records":[…]} as it delivers them, what `aws cloudtrail lookup-events` prints, or
// one a line. Where the call made credentials (AssumeRole), it is those that the line is about. A session's source identity
// stays through role chaining, and anybody may choose the same one in an account of their own: it comes last.
func CloudTrail(r io.Reader) iter.Seq2[Line, error] {
	return decode(r, `CloudTrail's: {"Records":[…]}, what lookup-events prints, a list, or one record a line`, func(t trailRecord) Line {
		if t.Whole != "" {
			var whole trailRecord
			_ = json.Unmarshal([]byte(t.Whole), &whole) // else nothing is understood
			t = whole
		}
		u := t.UserIdentity
		l := Line{At: moment(t.EventTime), What: strings.TrimSpace(t.EventSource + " " + t.EventName)}
		if t.ErrorCode != "" {
			l.What += " (" + t.ErrorCode + ")"
		}
		names := []Name{{"new key", t.ResponseElements.Credentials.AccessKeyID}, {"key", u.AccessKeyID}}
		if u.Type == "AssumedRole" {
			names = append(names, Name{"principal", u.PrincipalID}, Name{"ARN", u.ARN}, Name{"source identity", u.SessionContext.SourceIdentity})
		}
		l.Names = present(names...)
		return l
	})
}
