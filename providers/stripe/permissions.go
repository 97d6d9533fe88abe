package stripe

import (
	"regexp"
	"slices"
	"strings"
)

// knownPermissions are the names that Stripe's managed keys take, without rak_: no call lists them. Prices go by plan,
// refunds by charge. What Stripe has added since stands in Config.ExtraPermissions.
var knownPermissions = strings.Fields(`
account_link_write adjustment_read api_key_write apple_pay_domain_read apple_pay_domain_write application_fee_read
application_fee_write balance_read balance_transaction_source_read billing_analytics_meter_usage_read billing_clock_read
billing_clock_write billing_intent_read billing_meter_event_read billing_meter_event_write billing_meter_read
billing_meter_write billing_profile_read billing_profile_write billing_settings_read billing_settings_write
capital_for_platforms_financing_offer_read capital_for_platforms_financing_offer_write
capital_for_platforms_financing_summary_read capital_for_platforms_financing_transaction_read charge_read charge_write
checkout_session_read checkout_session_write confirmation_token_client_read confirmation_token_client_write
confirmation_token_read connected_account_read coupon_read coupon_write credit_note_read credit_note_write
customer_portal_read customer_portal_write customer_read customer_session_read customer_session_write customer_write
dispute_read dispute_write edit_link_write entitlement_read event_read fee_domain_resources_read file_read file_write
financial_account_read inbound_transfer_read invoice_read invoice_write issuing_authorization_read
issuing_authorization_write issuing_card_read issuing_card_write issuing_cardholder_read issuing_cardholder_write
issuing_credit_ledger_read issuing_credit_ledger_write issuing_dispute_read issuing_dispute_write issuing_read
issuing_token_network_data_read issuing_token_read issuing_token_write issuing_transaction_read
issuing_transaction_write issuing_verification_write issuing_write mandate_read mandate_write order_read order_write
outbound_payment_read outbound_transfer_read payment_intent_read payment_intent_write payment_links_read
payment_links_write payment_method_configurations_read payment_method_configurations_write payment_method_domain_read
payment_method_domain_write payment_method_read payment_method_write payment_records_read payment_records_write
payout_intent_read payout_read payout_write plan_read plan_write product_catalog_import_read
product_catalog_import_write product_read product_write promotion_code_read promotion_code_write
provisioning_account_request_read provisioning_account_request_write provisioning_project_read
provisioning_project_write provisioning_resource_read provisioning_resource_write quote_read quote_write
rate_card_subscription_write rate_card_write received_credit_read received_debit_read recipient_verification_read
report_runs_and_report_types_read report_runs_and_report_types_write review_read review_write secret_read secret_write
setup_intent_read setup_intent_write shipping_rate_read shipping_rate_write sku_read sku_write source_read source_write
subscription_read subscription_write tax_calculations_and_transactions_read tax_calculations_and_transactions_write
tax_locations_read tax_locations_write tax_rate_read tax_rate_write tax_settings_read tax_settings_write
terminal_configuration_read terminal_configuration_write terminal_connection_token_write terminal_location_read
terminal_location_write terminal_reader_read terminal_reader_write token_read token_write top_up_read top_up_write
transaction_read transfer_read transfer_write treasury_transaction_read usage_record_read usage_record_write
webhook_read webhook_write`)

// makesKeys is the permission with which a task would make itself other keys, which no end of its own would follow.
const makesKeys = "api_key_write"

var permissionForm = regexp.MustCompile(`^[a-z]+(_[a-z]+)*_(read|write)$`)

// probes are calls that tell whether a key has a permission. A read is a list of one object. A write creates with a
// parameter that does not exist, so nothing is made: with the permission it is refused for the parameter, without for the
// permission.
var probes = map[string]string{
	"balance_read": "/v1/balance", "charge_read": "/v1/charges", "checkout_session_read": "/v1/checkout/sessions",
	"coupon_read": "/v1/coupons", "credit_note_read": "/v1/credit_notes", "customer_portal_read": "/v1/billing_portal/configurations",
	"customer_read": "/v1/customers", "dispute_read": "/v1/disputes", "event_read": "/v1/events", "file_read": "/v1/files",
	"invoice_read": "/v1/invoices", "issuing_card_read": "/v1/issuing/cards", "payment_intent_read": "/v1/payment_intents",
	"payment_links_read": "/v1/payment_links", "payout_read": "/v1/payouts", "plan_read": "/v1/prices", "product_read": "/v1/products",
	"promotion_code_read": "/v1/promotion_codes", "quote_read": "/v1/quotes", "setup_intent_read": "/v1/setup_intents",
	"shipping_rate_read": "/v1/shipping_rates", "subscription_read": "/v1/subscriptions", "tax_rate_read": "/v1/tax_rates",
	"top_up_read": "/v1/topups", "transfer_read": "/v1/transfers", "webhook_read": "/v1/webhook_endpoints",

	"checkout_session_write": "/v1/checkout/sessions", "coupon_write": "/v1/coupons", "customer_write": "/v1/customers",
	"invoice_write": "/v1/invoices", "payment_intent_write": "/v1/payment_intents", "payment_links_write": "/v1/payment_links",
	"payout_write": "/v1/payouts", "plan_write": "/v1/prices", "product_write": "/v1/products", "promotion_code_write": "/v1/promotion_codes",
	"quote_write": "/v1/quotes", "charge_write": "/v1/refunds", "setup_intent_write": "/v1/setup_intents",
	"subscription_write": "/v1/subscriptions", "tax_rate_write": "/v1/tax_rates", "transfer_write": "/v1/transfers",
	"webhook_write": "/v1/webhook_endpoints",
}

// telltales are probed on every key of a pool, declared or not: what matters most in the wrong hands.
var telltales = []string{
	"balance_read", "charge_read", "customer_read", "event_read", "invoice_read", "payment_intent_read", "payout_read",
	"subscription_read", "transfer_read", "webhook_read",
}

// tellingWrites are probed likewise where the operator lets writes be probed.
var tellingWrites = []string{
	"charge_write", "customer_write", "invoice_write", "payment_intent_write", "payout_write", "subscription_write",
	"transfer_write", "webhook_write",
}

// permissions is a set of permission names with all that they imply.
type permissions map[string]bool

// implying makes the set of the names and of what they imply: write implies read.
func implying(names ...string) permissions {
	set := permissions{}
	for _, name := range names {
		set[name] = true
		if resource, ok := strings.CutSuffix(name, "_write"); ok && slices.Contains(knownPermissions, resource+"_read") {
			set[resource+"_read"] = true
		}
	}
	return set
}

// without lists, sorted, what p has and q lacks.
func (p permissions) without(q permissions) []string {
	var list []string
	for name := range p {
		if !q[name] {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// sorted lists the set.
func (p permissions) sorted() []string { return p.without(nil) }

// createLink opens the dashboard where an operator makes a key, with everything filled in.
func createLink(livemode bool, name string, names []string) string {
	link := "https://dashboard.stripe.com/"
	if !livemode {
		link += "test/"
	}
	link += "apikeys/create?name=" + name
	for _, p := range names {
		link += "&permissions[]=rak_" + p
	}
	return link
}
