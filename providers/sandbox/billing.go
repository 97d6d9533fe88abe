package sandbox

import (
	"encoding/hex"

	"github.com/taskpass/taskpass/providers/sandbox/stripe"
)

// StripePermissions are the restricted keys that an operator made in the sandbox's Stripe account, by name, and what each
// may do.
var StripePermissions = map[string][]string{
	"reads-customers":  {"customer_read"},
	"reads-billing":    {"customer_read", "invoice_read"},
	"writes-customers": {"customer_write"},
}

// newStripe makes a test-mode account with two customers and an invoice.
func (s *Sandbox) newStripe(cfg Config) (err error) {
	s.Stripe, err = stripe.New(stripe.Config{SecretKey: "sk_test_" + random(24, hex.EncodeToString), Now: cfg.Now})
	if err != nil {
		return err
	}
	s.StripeKeys = map[string]string{}
	for name, permissions := range StripePermissions {
		s.StripeKeys[name] = s.Stripe.AddKey(stripe.Key{Name: name, Permissions: permissions})
	}
	s.Stripe.AddObject("customers", map[string]any{"name": "Ada"})
	s.Stripe.AddObject("customers", map[string]any{"name": "Grace"})
	s.Stripe.AddObject("invoices", map[string]any{"amount": 4200, "currency": "eur"})
	return nil
}
