package stripe

import "github.com/taskpass/taskpass/broker"

// row is what one of Stripe's codes means.
type row struct {
	code  broker.Code // whether it is retryable is that code's
	doubt bool        // it is no proof that nothing was done, whatever the status
	says  string
}

const (
	saysKey     = "Stripe does not accept the broker's own key: the operator should check secret_key, whether it has expired, and its list of allowed addresses"
	saysRight   = "the broker's own Stripe key may not do this: the operator should check its permissions and the account"
	saysMode    = "Stripe finds the key of the other mode, test or live: the operator should check secret_key and livemode"
	saysAccount = "Stripe does not let this account do it: the operator should check account, and the account's state"
	saysForm    = "Stripe refuses the form of the request"
	saysBusy    = "Stripe is working on the same object, or on the same request, at this moment"
	saysFails   = "Stripe, or somebody whom it asks, failed"
)

// rows is the one table of Stripe's codes, of those that the calls made here can get. more_permissions_required is not in
// it: its message names the permission. https://docs.stripe.com/error-codes
var rows = map[string]row{
	"rate_limit":             {broker.CodeUpstreamThrottled, false, ""},
	"lock_timeout":           {broker.CodeUpstreamError, false, saysBusy},
	"idempotency_key_in_use": {broker.CodeUpstreamError, true, saysBusy},
	"processing_error":       {broker.CodeUpstreamError, true, saysFails},

	"api_key_expired":          {broker.CodeUpstreamRefused, false, saysKey},
	"platform_api_key_expired": {broker.CodeUpstreamRefused, false, saysKey},
	"secret_key_required":      {broker.CodeUpstreamRefused, false, saysKey},
	"livemode_mismatch":        {broker.CodeUpstreamRefused, false, saysMode},
	"testmode_charges_only":    {broker.CodeUpstreamRefused, false, saysMode},

	"account_invalid":                 {broker.CodeUpstreamRefused, false, saysAccount},
	"account_closed":                  {broker.CodeUpstreamRefused, false, saysAccount},
	"no_account":                      {broker.CodeUpstreamRefused, false, saysAccount},
	"platform_account_required":       {broker.CodeUpstreamRefused, false, saysAccount},
	"not_allowed_on_standard_account": {broker.CodeUpstreamRefused, false, saysAccount},

	"parameter_invalid_empty":        {broker.CodeUpstreamRefused, false, saysForm},
	"parameter_invalid_integer":      {broker.CodeUpstreamRefused, false, saysForm},
	"parameter_invalid_string_blank": {broker.CodeUpstreamRefused, false, saysForm},
	"parameter_invalid_string_empty": {broker.CodeUpstreamRefused, false, saysForm},
	"parameter_missing":              {broker.CodeUpstreamRefused, false, saysForm},
	"parameter_unknown":              {broker.CodeUpstreamRefused, false, saysForm},
	"parameters_exclusive":           {broker.CodeUpstreamRefused, false, saysForm},
	"url_invalid":                    {broker.CodeUpstreamRefused, false, saysForm},
	"tls_version_unsupported":        {broker.CodeUpstreamRefused, false, "Stripe does not take this machine's version of TLS"},
	"resource_missing":               {broker.CodeUpstreamRefused, false, "Stripe does not know what the request is for"},
}

// doubtful are the statuses below 500 after which something may have been done: time-outs, conflicts, failed dependencies.
var doubtful = map[int]bool{408: true, 409: true, 424: true, 425: true}
