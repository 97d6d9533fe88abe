// Package gcp is a loopback stand-in for the part of Google Cloud that a token broker
// and its agents meet, at the wire: the real client libraries talk to it. Two gRPC
// services are built on Google's own service definitions, IAM Service Account
// Credentials (GenerateAccessToken, GenerateIdToken) and IAM (service accounts and
// their keys). Over HTTP it has the Security Token Service's exchange for Credential
// Access Boundaries, the OAuth token endpoint for service-account keys, the keys that
// ID tokens are signed with, and a subset of the Cloud Storage JSON API.
//
// The object API enforces: a token must be known and unexpired, its account enabled,
// the account must hold a role on the bucket, and an access boundary must make the
// permission available, its CEL conditions evaluated by the real library. A disabled
// account's tokens are refused, and work again once it is enabled, as Google says of
// DisableServiceAccount.
//
// For tests it offers inspection ([Server.Tokens], [Server.Usable], [Server.Calls]),
// foreign edits ([Server.SetDisabled], [Server.AddKey]), faults ([Server.Inject]) and
// delayed visibility ([Server.Hide]).
//
// It differs from Google on purpose, or because Google does not say, in this:
//
//   - disabling, enabling, deleting and granting take effect at once;
//   - minting for a disabled account is PERMISSION_DENIED with the reason
//     ACCOUNT_STATE_INVALID; Google documents only that it fails;
//   - an eleventh key is FAILED_PRECONDITION without details, as has been seen since
//     2022; RESOURCE_EXHAUSTED with a RetryInfo of a day, as before, if configured;
//   - gRPC is plaintext, and so takes a bearer token where Google's would not;
//   - the broker's identity may do everything to accounts and keys, and nothing else may.
//
// It must never be a default in production: whoever holds its broker token is trusted.
package gcp
