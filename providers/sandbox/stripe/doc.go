// Package stripe is a loopback stand-in for Stripe's API at the wire: stripe-go talks to it, and it enforces what Stripe
// enforces for restricted keys. It knows which key may read or write which resource, refuses with Stripe's statuses, codes
// and messages (which bear the tail of the key that was sent), and keeps what was created.
//
// What it serves:
//
//   - /v1/RESOURCE and /v1/RESOURCE/ID for the resources of [Resources]: lists, objects, creations, by permission
//     (RESOURCE_read, RESOURCE_write; write implies read), with Idempotency-Key;
//   - /v1/ephemeral_keys for a customer, an issuing card or a verification session, which live for an hour, and the calls
//     that such a key may make;
//   - /v2/iam/api_keys, the private preview by which an installed app makes restricted keys: only with [Config].Preview,
//     the preview's Stripe-Version and a Stripe-Context. A live secret comes as a JWE to the public key that was sent; a
//     test secret in the clear, in every list too, as Stripe does.
//
// For tests it also offers inspection ([Server.Keys], [Server.Calls]), what operators do in the dashboard
// ([Server.AddKey], [Server.ExpireKey], [Server.SetPermissions]) and faults ([Server.Inject]).
//
// It differs from Stripe on purpose, or because Stripe does not say, in this:
//
//   - an expired key is refused after [Config].ExpireLag and [Config].ExpireUses, not after "about nine seconds";
//   - a POST takes the parameters of a small common set; all others are unknown ones;
//   - which permission an ephemeral key takes to make is not published: here it is ephemeral_key_write;
//   - there are no connected accounts, no rate limit of its own, no TLS.
package stripe
