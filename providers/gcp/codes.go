package gcp

import (
	"google.golang.org/grpc/codes"

	"github.com/taskpass/taskpass/broker"
)

// row is what one of Google's codes or reasons means.
type row struct {
	code broker.Code // whether it is retryable is that code's
	says string      // {account} stands for the account's email
}

const (
	refusing = broker.CodeUpstreamRefused
	failing  = broker.CodeUpstreamError

	saysQuota    = "Google's quota for this project is spent for now"
	saysIdentity = "Google does not accept the broker's own credentials: the operator should check credentials_file or token_file, and this machine's clock"
	saysAPIs     = "the IAM APIs are not enabled in the broker's project: the operator should enable iam.googleapis.com and iamcredentials.googleapis.com"
	saysProject  = "Google does not serve the broker's project: the operator should check its billing and its state"
	saysPolicy   = "a policy of the organization forbids it: the operator should check VPC Service Controls and organization policies for {account}"
	saysDisabled = "the service account {account} is disabled: the operator should enable it, or take it out of the profile"
)

// statuses is the table of google.rpc's codes: https://cloud.google.com/apis/design/errors#handling_errors
var statuses = map[codes.Code]row{
	codes.ResourceExhausted: {broker.CodeUpstreamThrottled, saysQuota},
	codes.Unavailable:       {failing, "Google could not be reached, or its answer could not be read"},
	codes.Internal:          {failing, "Google failed"},
	codes.Unknown:           {failing, "Google failed"},
	codes.DataLoss:          {failing, "Google failed"},
	codes.Aborted:           {failing, "Google is changing {account} for somebody else at this moment"},
	codes.Unauthenticated:   {refusing, saysIdentity},
	codes.PermissionDenied: {refusing, "the broker's identity may not do this to {account}: the operator should grant the roles that docs/gcp.md names, " +
		"to each link of the delegates"},
	codes.NotFound: {refusing, "the service account {account} does not exist, or cannot be seen yet"},
	codes.InvalidArgument: {refusing, "Google refuses the request's form; most often the TTL is over an hour and the organization's policy " +
		"iam.allowServiceAccountCredentialLifetimeExtension does not list the account, or an OAuth scope is unknown"},
	codes.OutOfRange: {refusing, "Google refuses the request's form"},
	codes.FailedPrecondition: {refusing, "the service account {account} is not in a state for this: " +
		"the operator should look whether it is disabled, or an organization policy forbids it"},
	codes.AlreadyExists: {refusing, "Google has such a thing already"},
	codes.Unimplemented: {refusing, "what answers does not know the call: the operator should check endpoints"},
}

// reasons is the table of google.api.ErrorReason, of those that the calls made here can get; IAM_PERMISSION_DENIED means
// what its code means. https://cloud.google.com/apis/design/errors#error_info
var reasons = map[string]row{
	"RATE_LIMIT_EXCEEDED":                 {broker.CodeUpstreamThrottled, saysQuota},
	"RESOURCE_QUOTA_EXCEEDED":             {broker.CodeUpstreamThrottled, saysQuota},
	"ACCOUNT_STATE_INVALID":               {refusing, saysDisabled},
	"SERVICE_DISABLED":                    {refusing, saysAPIs},
	"SERVICE_NOT_VISIBLE":                 {refusing, saysAPIs},
	"BILLING_DISABLED":                    {refusing, saysProject},
	"CONSUMER_SUSPENDED":                  {refusing, saysProject},
	"CONSUMER_INVALID":                    {refusing, saysProject},
	"GCP_SUSPENDED":                       {refusing, saysProject},
	"USER_PROJECT_DENIED":                 {refusing, saysProject},
	"RESOURCE_PROJECT_INVALID":            {refusing, saysProject},
	"ACCESS_TOKEN_EXPIRED":                {refusing, saysIdentity},
	"ACCESS_TOKEN_SCOPE_INSUFFICIENT":     {refusing, saysIdentity},
	"ACCESS_TOKEN_TYPE_UNSUPPORTED":       {refusing, saysIdentity},
	"CREDENTIALS_MISSING":                 {refusing, saysIdentity},
	"JWT_TOKEN_INVALID":                   {refusing, saysIdentity},
	"CREDENTIAL_TYPE_UNSUPPORTED":         {refusing, saysIdentity},
	"ACCOUNT_TYPE_UNSUPPORTED":            {refusing, saysIdentity},
	"OVERLOADED_CREDENTIALS":              {refusing, saysIdentity},
	"USER_BLOCKED_BY_ADMIN":               {refusing, saysPolicy},
	"SECURITY_POLICY_VIOLATED":            {refusing, saysPolicy},
	"ORG_RESTRICTION_VIOLATION":           {refusing, saysPolicy},
	"ORG_RESTRICTION_HEADER_INVALID":      {refusing, saysPolicy},
	"LOCATION_POLICY_VIOLATED":            {refusing, saysPolicy},
	"LOCATION_ORG_POLICY_VIOLATED":        {refusing, saysPolicy},
	"LOCATION_TAX_POLICY_VIOLATED":        {refusing, saysPolicy},
	"RESOURCE_USAGE_RESTRICTION_VIOLATED": {refusing, saysPolicy},
	"ENDPOINT_USAGE_RESTRICTION_VIOLATED": {refusing, saysPolicy},
	"TLS_ORG_POLICY_VIOLATED":             {refusing, saysPolicy},
	"TLS_CIPHER_RESTRICTION_VIOLATED":     {refusing, saysPolicy},
}
