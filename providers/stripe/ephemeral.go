package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	sdk "github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/ephemeralkey"

	"github.com/taskpass/taskpass/broker"
)

// ephemeralGone is how long after its intent an ephemeral key is surely dead, whatever else is known: Stripe gives it about
// an hour.
const ephemeralGone = 90 * time.Minute

// ephemeral makes a key for one object of Stripe's.
type ephemeral struct{ base }

// Upstream implements broker.Provider.
func (e *ephemeral) Upstream(broker.Credential) string {
	if e.cfg.Account != "" {
		return "stripe:" + e.cfg.Account
	}
	return "stripe:ephemeral"
}

// Quota implements broker.Metered. The reference names the account as well as anything does.
func (e *ephemeral) Quota() string {
	return e.Upstream(broker.Credential{}) + ":" + string(e.cfg.SecretKey)
}

// object is the id of what the key is for, out of the request's metadata.
func (e *ephemeral) object(c broker.Credential) (string, error) {
	key := objectForm.FindStringSubmatch(e.cfg.Ephemeral.Object)[1]
	id := c.Metadata[key]
	if !objects[e.cfg.Ephemeral.For].MatchString(id) {
		err := broker.Errorf(broker.CodeInvalidRequest, "metadata %s must be the id of the %s that the key is for", key, e.cfg.Ephemeral.For)
		err.Faults = []broker.Fault{{Pointer: "/metadata/" + key, Reason: "must be the id of the " + e.cfg.Ephemeral.For + " that the key is for"}}
		return "", err
	}
	return id, nil
}

// create asks for the version's key. Asked again within a day it answers the same key, for the version's id is the
// Idempotency-Key: that is how a key whose answer was lost is found.
func (e *ephemeral) create(ctx context.Context, own broker.Secret, c broker.Credential) (*sdk.EphemeralKey, string, *failure, error) {
	id, err := e.object(c)
	if err != nil {
		return nil, id, nil, err
	}
	ctx, x := watch(ctx, "POST /v1/ephemeral_keys")
	params := &sdk.EphemeralKeyParams{StripeVersion: sdk.String(e.cfg.Ephemeral.Version)}
	params.Context, params.IdempotencyKey = ctx, sdk.String(string(c.Version.ID))
	switch e.cfg.Ephemeral.For {
	case "customer":
		params.Customer = sdk.String(id)
	case "issuing_card":
		params.IssuingCard = sdk.String(id)
	default:
		params.VerificationSession = sdk.String(id)
	}
	made, err := ephemeralkey.Client{B: e.client.backend, Key: own.Reveal()}.New(params)
	return made, id, x.failure(ctx, err), nil
}

// Mint implements broker.Provider.
func (e *ephemeral) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	own, err := e.client.ownKey(e.cfg.SecretKey)
	if err != nil {
		return broker.Minted{}, surely(err)
	}
	made, object, f, err := e.create(ctx, own, c)
	switch {
	case err != nil:
		return broker.Minted{}, surely(err)
	case f != nil && f.code == "resource_missing":
		return broker.Minted{}, surely(broker.Errorf(broker.CodeInvalidRequest, "Stripe knows no such %s", e.cfg.Ephemeral.For).Because(f))
	case f != nil:
		return broker.Minted{}, f.mint(f.meaning())
	}
	if err := e.verify(made, object); err != nil {
		if f := e.remove(ctx, own, made.ID); f != nil {
			e.Logger.ErrorContext(ctx, "an ephemeral key that is not as asked for could not be deleted; it dies within about an hour",
				"version_id", c.Version.ID, "error", f, broker.VendorAttr(f))
		}
		return broker.Minted{}, broker.Errorf(broker.CodeUpstreamError, "Stripe made another key than was asked for; it was not handed out").Because(err)
	}
	requestID := ""
	if made.LastResponse != nil && plain(made.LastResponse.RequestID) {
		requestID = made.LastResponse.RequestID
	}
	return broker.Minted{
		Secret: e.bundle("stripe_ephemeral_key", broker.NewSecret(made.Secret)), UpstreamExpiresAt: time.Unix(made.Expires, 0).UTC(),
		UpstreamIDs: []string{made.ID}, OwnID: true,
		Trace: e.trace(c, made.ID, requestID, map[string]string{"for": e.cfg.Ephemeral.For, "object": object, "api_version": e.cfg.Ephemeral.Version}),
	}, nil
}

// ephemeralID is how ids look that are put into a path.
var ephemeralID = regexp.MustCompile(`^ephkey_[A-Za-z0-9_]{1,100}$`)

// verify holds the answer against what was asked for.
func (e *ephemeral) verify(made *sdk.EphemeralKey, object string) error {
	var more struct {
		Associated []struct {
			ID   string `json:"id"`
			Type string `json:"type"`
		} `json:"associated_objects"`
	}
	if err := json.Unmarshal(made.RawJSON, &more); err != nil {
		return fmt.Errorf("%w: form", errNotAsAsked)
	}
	now := e.Clock()
	end := time.Unix(made.Expires, 0)
	switch {
	case !ephemeralID.MatchString(made.ID):
		return fmt.Errorf("%w: id", errNotAsAsked)
	case made.Livemode != e.cfg.Livemode, !isKey(broker.NewSecret(made.Secret), e.cfg.Livemode, "ek_"):
		return fmt.Errorf("%w: livemode or form", errNotAsAsked)
	case !end.After(now) || end.After(now.Add(ephemeralGone)):
		return fmt.Errorf("%w: expires", errNotAsAsked)
	}
	for _, a := range more.Associated {
		if a.ID != object {
			return fmt.Errorf("%w: what it is for", errNotAsAsked)
		}
	}
	return nil
}

// ephemeralGoneKey is the answer to a deletion: the key that was deleted.
type ephemeralGoneKey struct {
	sdk.APIResource
	ID     string `json:"id"`
	Object string `json:"object"`
}

// remove deletes a key; nil: it is gone by this call.
func (e *ephemeral) remove(ctx context.Context, own broker.Secret, id string) *failure {
	if !ephemeralID.MatchString(id) {
		return &failure{}
	}
	var gone ephemeralGoneKey
	_, f := e.client.do(ctx, request{method: http.MethodDelete, path: "/v1/ephemeral_keys/" + url.PathEscape(id), key: own}, &gone)
	return notOf(f, "DELETE /v1/ephemeral_keys/*", gone.ID == id && gone.Object == "ephemeral_key")
}

// Revoke implements broker.Provider: it deletes the version's key, which Stripe obeys at once. Its id is on record, or is
// asked for once more.
func (e *ephemeral) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	now := e.Clock().UTC()
	if dead := c.Version.IssuedAt.Add(ephemeralGone); !now.Before(dead) {
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "self_expired"}, nil
	}
	own, err := e.client.ownKey(e.cfg.SecretKey)
	if err != nil {
		return broker.Revocation{}, err
	}
	secret, seen, err := e.handed(ctx, c)
	if err != nil {
		return broker.Revocation{}, broker.Errorf(broker.CodeUnavailable, "what was handed out could not be looked up").Because(err)
	}
	id := ""
	for _, known := range c.Version.UpstreamIDs {
		if ephemeralID.MatchString(known) {
			id = known
		}
	}
	if id == "" {
		made, done, err := e.lost(ctx, own, c)
		if made == nil {
			return done, err
		}
		id, secret, seen = made.ID, broker.NewSecret(made.Secret), true
	}
	f := e.remove(ctx, own, id)
	switch {
	case f == nil:
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "deleted"}, nil
	case f.status == http.StatusNotFound && seen: // deleted before, or another account's: the key itself tells
		if state, f := e.try(ctx, secret); f != nil {
			return broker.Revocation{}, f.meaning()
		} else if state == aliveNo {
			return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "refused_as_expired"}, nil
		}
	}
	return broker.Revocation{}, f.meaning()
}

// lost finds the key of a version whose answer never came, by asking for it again under the same Idempotency-Key: that
// answers the key that was made, or makes it now, and a request that is still on its way makes no second one. Where that
// cannot be, all that is known is that the key dies by itself: then made is nil, and done says so.
func (e *ephemeral) lost(ctx context.Context, own broker.Secret, c broker.Credential) (made *sdk.EphemeralKey, done broker.Revocation, err error) {
	if _, err := e.object(c); err != nil { // with such metadata nothing was ever asked
		return nil, broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: e.Clock().UTC(), Basis: "never_asked"}, nil //nolint:nilerr // as said
	}
	made, _, f, err := e.create(ctx, own, c)
	switch {
	case err != nil:
		return nil, done, err
	case f != nil && (f.idempotent || f.code == "resource_missing" || f.status == http.StatusConflict && strings.HasPrefix(f.code, "idempotency_")):
		return nil, broker.Revocation{Result: broker.ResultExpires, EffectiveAt: c.Version.IssuedAt.Add(ephemeralGone), Basis: "self_expires"}, nil
	case f != nil:
		return nil, broker.Revocation{}, f.meaning()
	case !ephemeralID.MatchString(made.ID):
		return nil, broker.Revocation{}, broker.Errorf(broker.CodeUpstreamError, "Stripe's answer has no id").Because(errNotAsAsked)
	}
	return made, broker.Revocation{}, nil
}
