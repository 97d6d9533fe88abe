package aws

import (
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// row is what one of AWS's codes means.
type row struct {
	code  broker.Code // whether it is retryable is that code's
	doubt bool        // it is no proof that nothing was done, whatever the status
	says  string      // {role} stands for the role's ARN
}

// meaning is the error for a caller.
func (w row) meaning(r reply, role string) *broker.Error {
	e := broker.Errorf(w.code, "%s", strings.ReplaceAll(w.says, "{role}", role)).Because(r.VendorAnswer)
	if w.code == broker.CodeUpstreamThrottled {
		e.RetryAfter = throttlePause
	}
	return e
}

// row finds a code in the table. Services and documents write some codes with "Exception" or "Fault" after them.
func (r reply) row() (row, bool) {
	w, ok := rows[r.Code]
	for _, suffix := range []string{"Exception", "Fault", "Error"} {
		if !ok {
			w, ok = rows[strings.TrimSuffix(r.Code, suffix)]
		}
	}
	return w, ok
}

const (
	refusing = broker.CodeUpstreamRefused
	failing  = broker.CodeUpstreamError

	saysThrottled   = "AWS is throttling this account and region"
	saysFailed      = "AWS failed"
	saysLate        = "AWS did not get the whole request in time"
	saysBusy        = "AWS is changing the role or its policies for somebody else at this moment"
	saysProvider    = "AWS could not ask the identity provider of the broker's web identity for its keys"
	saysToken       = "AWS does not accept the broker's web identity: the operator should check its token file and the trust policy of its role"
	saysKeys        = "AWS does not accept the broker's own credentials: the operator should check them, and this machine's clock"
	saysClock       = "this machine's clock and AWS's differ too much: the operator should set this machine's clock"
	saysExpired     = "the broker's own AWS credentials have expired: the operator should renew them"
	saysAccount     = "this AWS account may not use STS or IAM: the operator should check the account's state"
	saysForm        = "AWS refuses the request's form: the operator should check the role's maximum session duration, and the tags"
	saysUnknownCall = "what answers does not know the call: the operator should check endpoint"
	saysPolicy      = "AWS finds the session policy malformed: the operator should check the statements of these scopes"
	saysFull        = "the role's deny policies are full"
	saysFixed       = "IAM does not let the policies of the role {role} be changed: it is a service's own role, so the operator should use another, or revocation.mode: none"
	saysAbsent      = "the role {role}, or a policy of it, does not exist"
)

// rows is the one table of AWS's codes: the common errors of its APIs, those of STS's and IAM's calls that are made here,
// and those that S3's servers give. AccessDenied is not in it: what it means depends on the call.
// https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html
// https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
var rows = map[string]row{
	"Throttling":                    {broker.CodeUpstreamThrottled, false, saysThrottled},
	"Throttled":                     {broker.CodeUpstreamThrottled, false, saysThrottled},
	"RequestThrottled":              {broker.CodeUpstreamThrottled, false, saysThrottled},
	"RequestLimitExceeded":          {broker.CodeUpstreamThrottled, false, saysThrottled},
	"TooManyRequests":               {broker.CodeUpstreamThrottled, false, saysThrottled},
	"BandwidthLimitExceeded":        {broker.CodeUpstreamThrottled, false, saysThrottled},
	"ProvisionedThroughputExceeded": {broker.CodeUpstreamThrottled, false, saysThrottled},
	"EC2Throttled":                  {broker.CodeUpstreamThrottled, false, saysThrottled},
	"SlowDown":                      {broker.CodeUpstreamThrottled, false, saysThrottled},

	"RequestTimeout":     {failing, true, saysLate},
	"RequestAborted":     {failing, true, saysLate},
	"IncompleteBody":     {failing, true, saysLate},
	"InternalFailure":    {failing, true, saysFailed},
	"InternalError":      {failing, true, saysFailed},
	"InternalServer":     {failing, true, saysFailed},
	"ServiceFailure":     {failing, true, saysFailed},
	"ServiceUnavailable": {failing, true, saysFailed},
	"PolicyEvaluation":   {failing, true, saysFailed},

	"ConcurrentModification":        {failing, false, saysBusy},
	"EntityTemporarilyUnmodifiable": {failing, false, saysBusy},
	"OperationAborted":              {failing, false, saysBusy},
	"PriorRequestNotComplete":       {failing, true, saysBusy},
	"TransactionInProgress":         {failing, true, saysBusy},

	"IDPCommunicationError":       {failing, false, saysProvider},
	"OpenIdIdpCommunicationError": {failing, false, saysProvider},
	"IDPRejectedClaim":            {refusing, false, saysToken},
	"InvalidIdentityToken":        {refusing, false, saysToken},
	"JWTPayloadSizeExceeded":      {refusing, false, saysToken},

	"InvalidClientTokenId":       {refusing, false, saysKeys},
	"InvalidAccessKeyId":         {refusing, false, saysKeys},
	"InvalidToken":               {refusing, false, saysKeys},
	"SignatureDoesNotMatch":      {refusing, false, saysKeys},
	"IncompleteSignature":        {refusing, false, saysKeys},
	"UnrecognizedClient":         {refusing, false, saysKeys},
	"MissingAuthenticationToken": {refusing, false, saysKeys},
	"ExpiredToken":               {refusing, false, saysExpired},
	"RequestExpired":             {refusing, false, saysClock},
	"RequestTimeTooSkewed":       {refusing, false, saysClock},
	"RequestInTheFuture":         {refusing, false, saysClock},
	"OptInRequired":              {refusing, false, saysAccount},
	"AccountProblem":             {refusing, false, saysAccount},

	"Validation":                  {refusing, false, saysForm},
	"InvalidInput":                {refusing, false, saysForm},
	"InvalidParameterValue":       {refusing, false, saysForm},
	"InvalidParameterCombination": {refusing, false, saysForm},
	"InvalidQueryParameter":       {refusing, false, saysForm},
	"MalformedQueryString":        {refusing, false, saysForm},
	"MalformedInput":              {refusing, false, saysForm},
	"MalformedHttpRequest":        {refusing, false, saysForm},
	"MissingParameter":            {refusing, false, saysForm},
	"RequestEntityTooLarge":       {refusing, false, saysForm},
	"SessionDurationEscalation":   {refusing, false, saysForm},

	"InvalidAction":    {refusing, false, saysUnknownCall},
	"MissingAction":    {refusing, false, saysUnknownCall},
	"UnknownOperation": {refusing, false, saysUnknownCall},
	"NotImplemented":   {refusing, true, saysUnknownCall},
	"MethodNotAllowed": {refusing, false, saysUnknownCall},

	"MalformedPolicyDocument": {refusing, false, saysPolicy},
	"PackedPolicyTooLarge":    {refusing, false, "the session policy and tags together are too large for AWS: ask for fewer scopes, or have the operator shorten tags"},
	"RegionDisabled":          {refusing, false, "STS is not active in this profile's region: the operator should activate it or choose another"},
	"LimitExceeded":           {refusing, false, saysFull},
	"UnmodifiableEntity":      {refusing, false, saysFixed},
	"PolicyNotAttachable":     {refusing, false, saysFixed},
	"DeleteConflict":          {refusing, false, saysFixed},
	"EntityAlreadyExists":     {refusing, false, saysFixed},
	"NoSuchEntity":            {refusing, false, saysAbsent},
}
