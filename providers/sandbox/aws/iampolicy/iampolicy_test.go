package iampolicy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// read is a request that most tests below vary.
func read(key string) iampolicy.Request {
	return iampolicy.Request{
		Action: "s3:GetObject", Resource: "arn:aws:s3:::b/" + key, Now: noon,
		Context: map[string]string{
			"aws:userid": "AROAX:s1", "aws:principaltag/team": "red*", "aws:tokenissuetime": "2026-03-01T11:00:00Z",
			"aws:securetransport": "false", "s3:prefix": "tasks/1/",
		},
	}
}

func parse(t testing.TB, text string) *iampolicy.Document {
	t.Helper()
	doc, err := iampolicy.Parse(text)
	if err != nil {
		t.Fatalf("Parse(%s): %v", text, err)
	}
	return doc
}

func statement(effect, rest string) string {
	return `{"Version":"2012-10-17","Statement":{"Effect":"` + effect + `",` + rest + `}}`
}

func TestActionsAndResources(t *testing.T) {
	t.Parallel()
	const a, d, s = iampolicy.Allowed, iampolicy.Denied, iampolicy.Silent
	for _, tc := range []struct {
		name, policy string
		key          string
		want         iampolicy.Outcome
	}{
		{"star", statement("Allow", `"Action":"*","Resource":"*"`), "k", a},
		{"deny star", statement("Deny", `"Action":"*","Resource":"*"`), "k", d},
		{"action in another case", statement("Allow", `"Action":"S3:getobject","Resource":"*"`), "k", a},
		{"action wildcard", statement("Allow", `"Action":"s3:Get*","Resource":"*"`), "k", a},
		{"action one character", statement("Allow", `"Action":"s3:GetObjec?","Resource":"*"`), "k", a},
		{"action one too many", statement("Allow", `"Action":"s3:GetObject?","Resource":"*"`), "k", s},
		{"action is no prefix", statement("Allow", `"Action":"s3:Get","Resource":"*"`), "k", s},
		{"not action excludes", statement("Allow", `"NotAction":["s3:Put*","s3:GetObject"],"Resource":"*"`), "k", s},
		{"not action includes", statement("Deny", `"NotAction":"iam:*","Resource":"*"`), "k", d},
		{"resource keeps its case", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::B/*"`), "k", s},
		{"resource prefix", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/tasks/1/*"`), "tasks/1/x/y", a},
		{"resource sibling", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/tasks/1/*"`), "tasks/11/x", s},
		{"resource middle star backtracks", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/*ab*ab"`), "abaabab", a},
		{"resource question mark is one rune", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/?"`), "é", a},
		{"not resource", statement("Deny", `"Action":"*","NotResource":"arn:aws:s3:::b/tasks/1/*"`), "tasks/2/x", d},
		{"not resource spares", statement("Deny", `"Action":"*","NotResource":"arn:aws:s3:::b/tasks/1/*"`), "tasks/1/x", s},
		{"variable", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/${aws:userid}/*"`), "AROAX:s1/x", a},
		{"variable's star is literal", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/${aws:PrincipalTag/team}"`), "red-one", s},
		{"variable's star matches a star", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/${aws:PrincipalTag/team}"`), "red*", a},
		{"escaped star", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/a${*}"`), "ab", s},
		{"escaped star matches", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/a${*}${?}${$}"`), "a*?$", a},
		{"absent variable allows nothing", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/${aws:username}*"`), "k", s},
		{"absent variable with default", statement("Allow", `"Action":"*","Resource":"arn:aws:s3:::b/${aws:username, 'k'}"`), "k", a},
		{"absent variable under not allows nothing", statement("Allow", `"Action":"*","NotResource":"arn:aws:s3:::b/${aws:username}"`), "k", s},
		{"absent variable under not denies", statement("Deny", `"Action":"*","NotResource":"arn:aws:s3:::b/${aws:username}"`), "k", d},
		{"unknown variable denies", statement("Deny", `"Action":"*","Resource":"arn:aws:s3:::b/${ec2:what}"`), "k", d},
		{"old version has no variables", `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"arn:aws:s3:::b/${aws:userid}"}]}`, "AROAX:s1", s},
		{"deny wins over allow", `{"Statement":[{"Effect":"Deny","Action":"s3:*","Resource":"*"},{"Effect":"Allow","Action":"*","Resource":"*"}]}`, "k", d},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := parse(t, tc.policy).Evaluate(read(tc.key)); got != tc.want {
				t.Errorf("%s on %s: %v, want %v", tc.policy, tc.key, got, tc.want)
			}
		})
	}
}

func TestConditions(t *testing.T) {
	t.Parallel()
	// Each condition is tried in an Allow and in a Deny: yes and no are the same in both,
	// unsure goes against the caller in both.
	const yes, no, unsure = "yes", "no", "unsure"
	for cond, want := range map[string]string{
		`{"StringEquals":{"aws:userid":"AROAX:s1"}}`:                                                  yes,
		`{"StringEquals":{"AWS:UserId":["no","AROAX:s1"]}}`:                                           yes,
		`{"StringEquals":{"aws:userid":"AROAX:*"}}`:                                                   no,
		`{"StringEquals":{"aws:userid":"aroax:s1"}}`:                                                  no,
		`{"StringEqualsIgnoreCase":{"aws:userid":"aroax:S1"}}`:                                        yes,
		`{"StringEquals":{"aws:userid":"AROAX:s1","s3:prefix":"other"}}`:                              no,
		`{"StringEquals":{"aws:userid":[]}}`:                                                          no,
		`{"StringNotEquals":{"aws:userid":["a","b"]}}`:                                                yes,
		`{"StringNotEquals":{"aws:userid":["a","AROAX:s1"]}}`:                                         no,
		`{"StringNotEquals":{"aws:SourceIdentity":"a"}}`:                                              yes,
		`{"StringEquals":{"aws:SourceIdentity":"a"}}`:                                                 no,
		`{"StringEqualsIfExists":{"aws:SourceIdentity":"a"}}`:                                         yes,
		`{"StringLike":{"aws:userid":"*:s?"}}`:                                                        yes,
		`{"StringLike":{"s3:prefix":["tasks/2/*","tasks/1/*"]}}`:                                      yes,
		`{"StringLike":{"s3:prefix":"${aws:userid}*"}}`:                                               no,
		`{"StringNotLike":{"aws:userid":"*:s1"}}`:                                                     no,
		`{"StringNotLike":{"aws:userid":"*:s2"}}`:                                                     yes,
		`{"DateGreaterThan":{"aws:CurrentTime":"2026-03-01T11:59:59Z"}}`:                              yes,
		`{"DateGreaterThan":{"aws:CurrentTime":"2026-03-01T12:00:00Z"}}`:                              no,
		`{"DateGreaterThan":{"aws:CurrentTime":"2026-03-01T13:59:59+02:00"}}`:                         yes,
		`{"DateGreaterThanEquals":{"aws:CurrentTime":"2026-03-01T12:00:00Z"}}`:                        yes,
		`{"DateLessThan":{"aws:CurrentTime":"2026-03-02"}}`:                                           yes,
		`{"DateLessThan":{"aws:TokenIssueTime":"2026-03-01T11:30:00Z"}}`:                              yes,
		`{"DateLessThanEquals":{"aws:TokenIssueTime":"2026-03-01T11:00:00Z"}}`:                        yes,
		`{"DateLessThan":{"aws:TokenIssueTime":"2026-03-01T11:00:00Z"}}`:                              no,
		`{"DateLessThanIfExists":{"aws:TokenIssueTime":"2026-03-01T10:00:00Z"}}`:                      no,
		`{"DateGreaterThanEqualsIfExists":{"aws:TokenIssueTime":"2026-03-01T11:00:00Z"}}`:             yes,
		`{"DateEquals":{"aws:TokenIssueTime":"2026-03-01T11:00:00Z"}}`:                                yes,
		`{"DateNotEquals":{"aws:TokenIssueTime":"2026-03-01T11:00:00Z"}}`:                             no,
		`{"DateLessThan":{"aws:SourceIdentity":"2026-03-01T11:00:00Z"}}`:                              no,
		`{"DateLessThanIfExists":{"aws:SourceIdentity":"2026-03-01T11:00:00Z"}}`:                      yes,
		`{"DateLessThan":{"aws:CurrentTime":1}}`:                                                      no,
		`{"DateLessThan":{"aws:CurrentTime":"soon"}}`:                                                 unsure,
		`{"Bool":{"aws:SecureTransport":"false"}}`:                                                    yes,
		`{"Bool":{"aws:SecureTransport":true}}`:                                                       no,
		`{"Bool":{"aws:SecureTransport":"perhaps"}}`:                                                  unsure,
		`{"Null":{"aws:SourceIdentity":"true"}}`:                                                      yes,
		`{"Null":{"aws:userid":"true"}}`:                                                              no,
		`{"Null":{"aws:userid":false}}`:                                                               yes,
		`{"StringEquals":{"sts:RoleSessionName":"s1"}}`:                                               no,
		`{"StringEquals":{"aws:NoSuchKey":"x"}}`:                                                      unsure,
		`{"Null":{"aws:NoSuchKey":"true"}}`:                                                           unsure,
		`{"NumericLessThan":{"s3:max-keys":"10"}}`:                                                    unsure,
		`{"ForAnyValue:StringEquals":{"aws:userid":"AROAX:s1"}}`:                                      unsure,
		`{"IpAddress":{"aws:userid":"x"},"StringEquals":{"aws:userid":"no"}}`:                         no,
		`{"StringEquals":{"aws:userid":"AROAX:s1"},"Bool":{"aws:SecureTransport":"false"}}`:           yes,
		`{"StringEquals":{"aws:userid":"AROAX:s1"},"StringLike":{"s3:prefix":"${aws:PrincipalTag/"}}`: no,
	} {
		t.Run(cond, func(t *testing.T) {
			t.Parallel()
			rest := `"Action":"*","Resource":"*","Condition":` + cond
			allow := parse(t, statement("Allow", rest)).Evaluate(read("k"))
			deny := parse(t, statement("Deny", rest)).Evaluate(read("k"))
			wantAllow, wantDeny := iampolicy.Silent, iampolicy.Silent
			if want == yes {
				wantAllow = iampolicy.Allowed
			}
			if want != no {
				wantDeny = iampolicy.Denied
			}
			if allow != wantAllow || deny != wantDeny {
				t.Errorf("got %v and %v, want %s", allow, deny, want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	ok := `"Effect":"Allow","Action":"s3:Get","Resource":"*"`
	for _, text := range []string{
		``, `nonsense`, `[]`, `{}`, `{"Statement":[]}`, `{"Statement":[{` + ok + `}]} x`,
		`{"Version":"2020-01-01","Statement":[{` + ok + `}]}`,
		`{"statement":[{` + ok + `}]}`,
		`{"Statement":[{` + ok + `,"Effect":"Deny"}]}`,
		`{"Statement":[{` + ok + `,"NotAction":"s3:Put"}]}`,
		`{"Statement":[{` + ok + `,"Principal":"*"}]}`,
		`{"Statement":[{` + ok + `,"Comment":"x"}]}`,
		`{"Statement":[{` + ok + `,"Sid":"no spaces"}]}`,
		`{"Statement":[{` + ok + `,"Sid":"a"},{` + ok + `,"Sid":"a"}]}`,
		`{"Statement":[{"Effect":"allow","Action":"*","Resource":"*"}]}`,
		`{"Statement":[{"Effect":"Allow","Action":[],"Resource":"*"}]}`,
		`{"Statement":[{"Effect":"Allow","Action":null,"Resource":"*"}]}`,
		`{"Statement":[{"Effect":"Allow","Action":"GetObject","Resource":"*"}]}`,
		`{"Statement":[{"Effect":"Allow","Action":"*"}]}`,
		`{"Statement":[{"Effect":"Allow","Action":"*","Resource":"bucket/*"}]}`,
		`{"Statement":[{` + ok + `,"Condition":{"Bool":{"a":{}}}}]}`,
		`{"Statement":[{` + ok + `,"Condition":{"Bool":{"a":null}}}]}`,
		`{"Statement":[{` + ok + `,"Condition":[]}]}`,
	} {
		if _, err := iampolicy.Parse(text); !errors.Is(err, iampolicy.ErrMalformed) {
			t.Errorf("Parse(%s) = %v, want ErrMalformed", text, err)
		}
	}
}

// FuzzResource holds the matcher to a slow and plain definition of wildcards.
func FuzzResource(f *testing.F) {
	for _, seed := range [][2]string{{"*", ""}, {"a*b?c", "axxbyc"}, {"*a*a*a", "aaaaab"}, {"?", "é"}, {"**?", "x"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 12 || len(s) > 16 || strings.ContainsAny(pattern, `$"\`) || strings.ContainsFunc(pattern+s, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Skip()
		}
		doc := parse(t, statement("Allow", fmt.Sprintf(`"Action":"*","Resource":"arn:aws:s3:::b/%s"`, pattern)))
		got := doc.Evaluate(read(s)) == iampolicy.Allowed
		if want := plainGlob(pattern, s); got != want {
			t.Errorf("%q on %q: %v, want %v", pattern, s, got, want)
		}
	})
}

func plainGlob(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return plainGlob(p[1:], s) || s != "" && plainGlob(p, s[1:])
	default:
		return s != "" && (p[0] == '?' || p[0] == s[0]) && plainGlob(p[1:], s[1:])
	}
}

// FuzzPolicy holds any text to what must be true of all policies: no panic, the same
// answer twice, and no gain from a Deny being there.
func FuzzPolicy(f *testing.F) {
	f.Add(statement("Allow", `"Action":"*","Resource":"*","Condition":{"StringLike":{"aws:userid":"${aws:userid}*"}}`))
	f.Add(statement("Deny", `"NotAction":"iam:?et*","NotResource":"arn:aws:s3:::${a,'b'}","Condition":{"DateLessThan":{"aws:CurrentTime":9}}`))
	f.Fuzz(func(t *testing.T, text string) {
		doc, err := iampolicy.Parse(text)
		if err != nil {
			if !errors.Is(err, iampolicy.ErrMalformed) {
				t.Fatalf("%v is not ErrMalformed", err)
			}
			return
		}
		first := doc.Evaluate(read("k"))
		if again := doc.Evaluate(read("k")); first != again {
			t.Errorf("%v, then %v", first, again)
		}
		if strings.Contains(text, `\`) {
			return // "\u0041llow" would not be replaced
		}
		harsh, err := iampolicy.Parse(strings.ReplaceAll(text, `"Allow"`, `"Deny"`))
		if err == nil && harsh.Evaluate(read("k")) == iampolicy.Allowed {
			t.Errorf("allowed by a policy of denials: %s", text)
		}
	})
}
