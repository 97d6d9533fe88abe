package upstreamlog

import (
	"io"
	"iter"
	"strings"
)

// trail is what CloudTrail's records are in: files as they are delivered, what the AWS CLI prints (lookup-events,
// filter-log-events, sqs receive-message, kinesis get-records), subscriptions of CloudWatch Logs, EventBridge, SNS, and the
// events that Lambda gets of these. The bucket notifications of S3 have the same form.
var trail = vendor{
	form:  `CloudTrail's: {"Records":[…]}, what lookup-events prints, a list, or one record a line`,
	lists: []string{"records", "events", "logevents", "messages"},
	own:   []string{"eventname", "useridentity"},
	inner: [][]string{{"CloudTrailEvent"}},
	outer: [][]string{
		{"CloudTrailEvent"}, {"eventData"}, {"detail"}, {"message"}, {"@message"}, {"body"}, {"data"},
		{"Sns", "Message"}, {"awslogs", "data"}, {"kinesis", "data"},
		{"Records"}, {"Events"}, {"logEvents"}, {"Messages"},
	},
	line:  trailLine,
	other: notACall,
}

// CloudTrail reads CloudTrail's records. Where the call made credentials (AssumeRole), it is those that the line is about. A
// session's source identity stays through role chaining, and anybody may choose the same one in an account of their own: it
// comes last.
func CloudTrail(r io.Reader) iter.Seq2[Line, error] { return trail.lines(r) }

// trailLine reads one record. The fields of userIdentity are looked at whatever its type: the same session is AssumedRole in
// the trail of its own account, AWSAccount in another one's, and has no type in S3's notifications.
// https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-user-identity.html
func trailLine(o object) Line {
	call := o.aside()
	l := Line{At: call.moment("eventTime"), What: what(call.text("eventSource"), call.text("eventName"))}
	if code := call.text("errorCode"); code != "" {
		l.What = what(l.What, "("+code+")")
	}
	user, made := o.child("userIdentity"), o.child("responseElements")
	session := made.child("assumedRoleUser")
	names := []Name{
		{"new key", made.child("credentials").text("accessKeyId")},
		{"new principal", session.text("assumedRoleId")}, {"new ARN", session.text("arn")},
		{"key", user.text("accessKeyId")}, {"key", o.text("AccessKeyId")}, // the second in what lookup-events adds
		{"principal", strings.TrimPrefix(user.text("principalId"), "AWS:")}, // so in S3's notifications
		{"ARN", user.text("arn")}, {"source identity", user.child("sessionContext").text("sourceIdentity")},
	}
	if l.Names = present(names...); len(l.Names) == 0 && o.raw("userIdentity") == nil && l.What != "" {
		o.note("userIdentity", nil) // every record has one
	}
	return l
}

// notACall names what AWS delivers beside records, or in their form.
func notACall(o object) (why string, known bool) {
	category, kind, source := o.text("eventCategory"), o.text("eventType"), o.text("source")
	switch {
	case category == "Insight", kind == "AwsCloudTrailInsight", o.has("insightDetails", "insightContext"):
		return "a CloudTrail Insights event counts calls, and is none", true
	case category == "Aggregated":
		return "an aggregated CloudTrail event counts calls, and is none", true
	case o.has("eventName", "userIdentity"):
		return "", false
	case o.has("digestS3Object", "digestEndTime"):
		return "a CloudTrail digest file has hashes of log files, and no calls", true
	case o.has("s3ObjectKey"):
		return "a notification about log files has no calls: give the files that it names", true
	case o.has("detail-type") && !strings.HasPrefix(source, "aws.") && source != "":
		return "an EventBridge event whose source is not AWS may say anything", true
	case o.text("detail-type") != "" && !strings.HasSuffix(o.text("detail-type"), " via CloudTrail"):
		return "an EventBridge event of another kind than CloudTrail's does not say who called", true
	case strings.HasPrefix(o.text("message"), "CWL CONTROL MESSAGE"):
		return "", true // CloudWatch Logs tests with it whether a subscription can be delivered
	}
	return "", false
}
