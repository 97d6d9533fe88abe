package aws

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/taskpass/taskpass/broker"
)

// What AWS takes. Of STS: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html; of IAM's names:
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
var (
	partitionForm = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	accountForm   = regexp.MustCompile(`^[0-9]{12}$`)
	tenantForm    = regexp.MustCompile(`^([A-Za-z0-9_]*[A-Za-z_][A-Za-z0-9_]*)?$`) // of Ceph's gateway: a tenant, an account, or none
	nameForm      = regexp.MustCompile(`^[\w+=,.@-]{1,128}$`)                      // of a role, up to 64, and of a policy
	pathForm      = regexp.MustCompile(`^(/[!-)+->@-~]+)*$`)                       // visible ASCII, without * and ?, which would be a mistake
	externalForm  = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	actionForm    = regexp.MustCompile(`^(\*|([A-Za-z0-9-]+|\*):[A-Za-z0-9*?]+)$`)
	operatorForm  = regexp.MustCompile(`^(ForAllValues:|ForAnyValue:)?[A-Za-z]+$`)
	keyForm       = regexp.MustCompile(`^[A-Za-z0-9-]+:[!-~]([ -~]*[!-~])?$`)
	segmentForm   = regexp.MustCompile(`^[A-Za-z0-9*?_-]*$`) // an ARN's partition, service, region or account, in a policy
)

const maxRoleName = 64

// namedARN takes the ARN of a role or a policy apart; wrong says in what it is not one. The account is not checked.
func namedARN(arn, kind string) (a awsarn.ARN, wrong string) {
	a, err := awsarn.Parse(arn)
	rest, ok := strings.CutPrefix(a.Resource, kind+"/")
	if err != nil || a.Service != "iam" || a.Region != "" || !ok || !partitionForm.MatchString(a.Partition) {
		return a, "is not the ARN of an IAM " + kind
	}
	at := strings.LastIndex(rest, "/") + 1
	path, name := strings.TrimSuffix("/"+rest[:at], "/"), rest[at:]
	switch {
	case !nameForm.MatchString(name) || kind == "role" && len(name) > maxRoleName:
		return a, "does not end in the name of one " + kind + ", of A-Z a-z 0-9 _ + = , . @ -"
	case !pathForm.MatchString(path) || len(path) > 510:
		return a, "has a path that IAM does not take"
	}
	return a, ""
}

// role takes the ARN of a role apart, as namedARN, and checks its account: 12 digits at AWS, while servers that are not
// AWS (Config.Endpoint) have names for them, or none.
func (c Config) role(arn string) (a awsarn.ARN, wrong string) {
	a, wrong = namedARN(arn, "role")
	if wrong == "" && !accountForm.MatchString(a.AccountID) && (c.Endpoint == "" || !tenantForm.MatchString(a.AccountID)) {
		wrong = "has an account that is not 12 digits"
	}
	return a, wrong
}

// badText says why a text that stands in a policy is surely a mistake: white space around it, or characters that nobody
// sees. Others that are not ASCII are escaped.
func badText(text string) string {
	switch {
	case !utf8.ValidString(text):
		return "is not UTF-8"
	case strings.TrimSpace(text) != text:
		return "begins or ends with white space"
	case strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }): // of spaces only U+0020 is
		return "has a character that cannot be seen"
	}
	return ""
}

// badResource says what is wrong with a resource of a statement.
func badResource(text string) string {
	if text == "*" {
		return ""
	}
	if reason := badText(text); reason != "" {
		return reason
	}
	const form = "is neither * nor an ARN, arn:partition:service:region:account:resource"
	fields := strings.SplitN(broker.Template(text).Without(), ":", 6)
	if len(fields) < 6 || fields[0] != "arn" || fields[5] == "" && !strings.Contains(text, "{{") {
		return form
	}
	for _, field := range fields[1:5] {
		if !segmentForm.MatchString(field) {
			return form
		}
	}
	return ""
}

// badTag says what STS does not take: https://docs.aws.amazon.com/STS/latest/APIReference/API_Tag.html
func badTag(key, value string, all map[string]string) string {
	switch n := utf8.RuneCountInString(key); {
	case n == 0 || n > 128:
		return "has a key that is not 1 to 128 characters"
	case strings.HasPrefix(strings.ToLower(key), "aws:"):
		return "has a key that begins with aws:, which is AWS's own"
	case !tagText(key) || strings.TrimSpace(key) != key:
		return "has a key with characters that STS does not take: letters, digits, spaces and _ . : / = + - @"
	case utf8.RuneCountInString(value) > 256 && !strings.Contains(value, "{{"):
		return "has a value that is longer than 256 characters"
	case strings.TrimSpace(value) != value:
		return "has a value that begins or ends with white space"
	case !tagText(broker.Template(value).Without()):
		return "has a value with characters that STS does not take: letters, digits, spaces and _ . : / = + - @"
	}
	for other := range all {
		if other != key && strings.EqualFold(other, key) {
			return "has a key that differs from another one in case only"
		}
	}
	return ""
}

func tagText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.In(r, unicode.L, unicode.Z, unicode.N) && !strings.ContainsRune("_.:/=+-@", r)
	})
}

// escaped writes a JSON text in ASCII: STS takes no character above U+00FF in a policy, and its JSON means the same.
func escaped(text []byte) string {
	var b strings.Builder
	for _, r := range string(text) {
		switch hi, lo := utf16.EncodeRune(r); {
		case r <= '~':
			b.WriteRune(r)
		case hi != unicode.ReplacementChar:
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
