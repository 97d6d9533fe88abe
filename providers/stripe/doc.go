// Package stripe gives tasks Stripe keys in one of three ways, by what an account can do.
//
//   - managed: the private preview of Stripe's managed API keys makes a restricted key for each version, with its own
//     permissions and end. It is expired at the version's end, and said to be destroyed once Stripe refuses it.
//   - ephemeral: a key for one customer, issuing card or verification session, which lives for about an hour and is deleted at
//     the version's end.
//   - pool: restricted keys that operators made in the dashboard, each with the permissions it was declared to have. A
//     task gets the smallest that suffices, alone. Such a key can be ended by an operator only.
//
// It decides what a scope means in Stripe's permissions, and what Stripe's answers mean. Stripe's messages bear the tail
// of the key that was sent, so they are never logged and never returned: an answer is told by its status and its code. It
// refuses to know who may ask, and keeps no state but what it has found out about the keys of a pool.
package stripe
