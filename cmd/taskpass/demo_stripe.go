package main

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/taskpass/taskpass/openapi/client"
)

// stripeKey shows the smallest restricted key that suffices, and what it cannot do.
func (s *story) stripeKey(ctx context.Context) error {
	s.chapter("It asks for Stripe: customers:read, out of three restricted keys of the *sandbox* account")
	issued, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "stripe-demo", Scopes: []string{"customers:read"},
	})
	if err != nil {
		return err
	}
	key, over := issued.Trace["key"], issued.Trace["over_granted"]
	if key != "reads-customers" || over != "" {
		return fmt.Errorf("lent the key %s, which can do %q beyond", key, over)
	}
	s.say("issued %s: the key %s, tried before it is lent; it can do nothing beyond", issued.ID, key)
	for _, c := range []struct {
		method, path, answer string
		want                 int
	}{
		{http.MethodGet, "/v1/customers", "yes", http.StatusOK},
		{http.MethodPost, "/v1/customers", "refused: it lacks customer_write", http.StatusForbidden},
		{http.MethodGet, "/v1/invoices", "refused: it lacks invoice_read", http.StatusForbidden},
	} {
		got, err := callStripe(ctx, s.stack.Sandbox.StripeURL, issued.Secret.Env["STRIPE_API_KEY"], c.method, c.path)
		if err != nil {
			return err
		}
		if got != c.want {
			return fmt.Errorf("%s %s: Stripe answered %d", c.method, c.path, got)
		}
		s.say("%-4s %-38s  %s", c.method, c.path, c.answer)
	}
	return nil
}

// callStripe is Stripe as an agent sees it with a key.
func callStripe(ctx context.Context, base, key, method, path string) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer reply.Body.Close()
	_, err = io.Copy(io.Discard, reply.Body)
	return reply.StatusCode, err
}
