package stripe

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Resources are what is served below /v1, each with the resource that its permission names: Prices go by the permission
// of plans, refunds by that of charges.
var Resources = map[string]string{
	"balance":                        "balance",
	"billing_portal/configurations":  "customer_portal",
	"charges":                        "charge",
	"checkout/sessions":              "checkout_session",
	"coupons":                        "coupon",
	"credit_notes":                   "credit_note",
	"customers":                      "customer",
	"disputes":                       "dispute",
	"events":                         "event",
	"files":                          "file",
	"identity/verification_sessions": "identity_verification_session",
	"invoices":                       "invoice",
	"issuing/cards":                  "issuing_card",
	"payment_intents":                "payment_intent",
	"payment_links":                  "payment_links",
	"payouts":                        "payout",
	"plans":                          "plan",
	"prices":                         "plan",
	"products":                       "product",
	"promotion_codes":                "promotion_code",
	"quotes":                         "quote",
	"refunds":                        "charge",
	"setup_intents":                  "setup_intent",
	"shipping_rates":                 "shipping_rate",
	"subscriptions":                  "subscription",
	"tax_rates":                      "tax_rate",
	"topups":                         "top_up",
	"transfers":                      "transfer",
	"webhook_endpoints":              "webhook",
}

// prefixes of ids, where they are not made of the resource's name.
var prefixes = map[string]string{"customers": "cus", "invoices": "in", "charges": "ch", "issuing/cards": "ic", "identity/verification_sessions": "vs"}

// known are the parameters of a POST that are understood.
var known = []string{"amount", "currency", "customer", "description", "email", "name", "type"}

type object struct {
	id      string
	created time.Time
	fields  map[string]any
}

// AddObject creates an object and returns its id.
func (s *Server) AddObject(resource string, fields map[string]any) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(resource, fields).id
}

// add needs s.mu.
func (s *Server) add(resource string, fields map[string]any) *object {
	prefix := prefixes[resource]
	if prefix == "" {
		prefix = strings.TrimSuffix(resource[strings.LastIndex(resource, "/")+1:], "s")
	}
	o := &object{id: prefix + "_" + random(14), created: s.cfg.Now(), fields: fields}
	if s.objects[resource] == nil {
		s.objects[resource] = map[string]*object{}
	}
	s.objects[resource][o.id] = o
	return o
}

func (s *Server) render(resource string, o *object) map[string]any {
	body := map[string]any{}
	for k, v := range o.fields {
		body[k] = v
	}
	body["id"], body["created"], body["livemode"] = o.id, o.created.Unix(), s.livemode
	body["object"] = strings.TrimSuffix(strings.ReplaceAll(resource, "/", "."), "s")
	return body
}

func (s *Server) listObjects(resource string) func(*call) reply {
	return func(c *call) reply {
		if refusal, ok := s.may(c, Resources[resource]+"_read"); !ok {
			return refusal
		}
		if resource == "balance" {
			return answer(map[string]any{"object": "balance", "livemode": s.livemode, "available": []any{}, "pending": []any{}})
		}
		limit := 10
		if text := c.URL.Query().Get("limit"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > 100 {
				return refuse(http.StatusBadRequest, "parameter_invalid_integer", "This value must be between 1 and 100.")
			}
			limit = n
		}
		all := make([]*object, 0, len(s.objects[resource]))
		for _, o := range s.objects[resource] {
			all = append(all, o)
		}
		slices.SortFunc(all, func(a, b *object) int { return strings.Compare(a.id, b.id) })
		data := []any{}
		for _, o := range all[:min(limit, len(all))] {
			data = append(data, s.render(resource, o))
		}
		return answer(map[string]any{"object": "list", "url": c.URL.Path, "has_more": len(all) > limit, "data": data})
	}
}

func (s *Server) createObject(resource string) func(*call) reply {
	return func(c *call) reply {
		if refusal, ok := s.may(c, Resources[resource]+"_write"); !ok {
			return refusal
		}
		form, err := url.ParseQuery(string(c.body))
		if err != nil {
			return refuse(http.StatusBadRequest, "", "Invalid form.")
		}
		fields := map[string]any{}
		for name := range form {
			if !slices.Contains(known, name) && !strings.HasPrefix(name, "metadata[") {
				return refuse(http.StatusBadRequest, "parameter_unknown", "Received unknown parameter: %s", name)
			}
			fields[name] = form.Get(name)
		}
		return answer(s.render(resource, s.add(resource, fields)))
	}
}

func (s *Server) getObject(resource string) func(*call) reply {
	return func(c *call) reply {
		id := c.PathValue("id")
		if c.eph != nil && c.eph.resource == resource && c.eph.object == id {
			return answer(s.render(resource, s.objects[resource][id]))
		}
		if refusal, ok := s.may(c, Resources[resource]+"_read"); !ok {
			return refusal
		}
		o := s.objects[resource][id]
		if o == nil {
			return refuse(http.StatusNotFound, "resource_missing", "No such object: '%s'", id)
		}
		return answer(s.render(resource, o))
	}
}
