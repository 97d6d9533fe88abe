package aws

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"

	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

// simulatePrincipalPolicy says what the policies of the user or of a role say, which are the ones that its calls are held
// to. Condition keys of a session are absent.
func (s *Server) simulatePrincipalPolicy(w http.ResponseWriter, c *call) *apiError {
	source := c.Form.Get("PolicySourceArn")
	if e := checkText("policySourceArn", source, 20, 2048, nil); e != nil {
		return e
	}
	if e := s.authorize(c, "iam:SimulatePrincipalPolicy", source, nil); e != nil {
		return e
	}
	who, ok := principal{arn: source, account: s.cfg.AccountID}, source == s.user.arn
	if r := s.roleByARN(source); r != nil && r.AccountID == c.who.account {
		who.session, ok = &session{role: r}, true
	}
	if !ok {
		return noSuchEntity("The principal " + source + " cannot be found.")
	}
	type evaluation struct{ EvalActionName, EvalResourceName, EvalDecision string }
	type result struct {
		XMLName           xml.Name `xml:"SimulatePrincipalPolicyResult"`
		EvaluationResults struct {
			Member []evaluation `xml:"member"`
		}
		IsTruncated bool
	}
	var out result
	for _, action := range members(c, "ActionNames") {
		for _, resource := range members(c, "ResourceArns") {
			decision := map[iampolicy.Outcome]string{
				iampolicy.Silent: "implicitDeny", iampolicy.Allowed: "allowed", iampolicy.Denied: "explicitDeny",
			}[s.identityOutcome(who, iampolicy.Request{Action: action, Resource: resource, Now: c.now, Context: map[string]string{
				"aws:principalarn": source, "aws:principalaccount": who.account,
			}})]
			out.EvaluationResults.Member = append(out.EvaluationResults.Member, evaluation{action, resource, decision})
		}
	}
	if len(out.EvaluationResults.Member) == 0 {
		return validationError("ActionNames and ResourceArns are required here.")
	}
	writeResult(w, c, out)
	return nil
}

// members is a list of the query protocol.
func members(c *call, name string) []string {
	var list []string
	for i := 1; ; i++ {
		value := c.Form.Get(fmt.Sprintf("%s.member.%d", name, i))
		if strings.TrimSpace(value) == "" {
			return list
		}
		list = append(list, value)
	}
}
