package stripe

import (
	"net/http"
	"net/url"
	"time"
)

// ephemeralLife is how long an ephemeral key works (Stripe's API reference: "Time at which the key will expire").
const ephemeralLife = time.Hour

type ephemeralKey struct {
	id, secret, resource, object, idempotencyKey string
	expires                                      time.Time
}

// associated are the parameters that name what an ephemeral key is for.
var associated = map[string]string{
	"customer": "customers", "issuing_card": "issuing/cards", "verification_session": "identity/verification_sessions",
}

func (s *Server) createEphemeral(c *call) reply {
	if refusal, ok := s.may(c, "ephemeral_key_write"); !ok {
		return refusal
	}
	if c.Header.Get("Stripe-Version") == "" {
		return refuse(http.StatusBadRequest, "", "Please provide a Stripe-Version header.")
	}
	form, err := url.ParseQuery(string(c.body))
	if err != nil || len(form) != 1 {
		return refuse(http.StatusBadRequest, "", "You must pass exactly one of customer, issuing_card or verification_session.")
	}
	for name := range form {
		resource, ok := associated[name]
		if !ok {
			return refuse(http.StatusBadRequest, "parameter_unknown", "Received unknown parameter: %s", name)
		}
		id := form.Get(name)
		if s.objects[resource][id] == nil {
			return refuse(http.StatusBadRequest, "resource_missing", "No such %s: '%s'", name, id)
		}
		mode := "ek_test_"
		if s.livemode {
			mode = "ek_live_"
		}
		e := &ephemeralKey{
			id: "ephkey_" + random(14), secret: mode + random(40), resource: resource, object: id,
			idempotencyKey: c.Header.Get("Idempotency-Key"), expires: c.now.Truncate(time.Second).Add(ephemeralLife),
		}
		s.ephemeral[e.id] = e
		body := s.renderEphemeral(e)
		body["secret"] = e.secret
		return answer(body)
	}
	return reply{}
}

func (s *Server) renderEphemeral(e *ephemeralKey) map[string]any {
	kind := e.resource[:len(e.resource)-1]
	return map[string]any{
		"id": e.id, "object": "ephemeral_key", "livemode": s.livemode, "expires": e.expires.Unix(),
		"created":            e.expires.Add(-ephemeralLife).Unix(),
		"associated_objects": []any{map[string]any{"type": kind, "id": e.object}},
	}
}

func (s *Server) deleteEphemeral(c *call) reply {
	if refusal, ok := s.may(c, "ephemeral_key_write"); !ok {
		return refusal
	}
	e := s.ephemeral[c.PathValue("id")]
	if e == nil || !c.now.Before(e.expires) {
		return refuse(http.StatusNotFound, "resource_missing", "No such ephemeral key: '%s'", c.PathValue("id"))
	}
	delete(s.ephemeral, e.id)
	return answer(s.renderEphemeral(e))
}

// Ephemeral is an ephemeral key that was made and not deleted.
type Ephemeral struct {
	ID, Secret, Object string
	IdempotencyKey     string // of the request that made it
}

// EphemeralKeys lists them.
func (s *Server) EphemeralKeys() []Ephemeral {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Ephemeral
	for _, e := range s.ephemeral {
		list = append(list, Ephemeral{e.id, e.secret, e.object, e.idempotencyKey})
	}
	return list
}
