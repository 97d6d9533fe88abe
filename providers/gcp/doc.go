// Package gcp makes credentials of Google Cloud service accounts, in one of three modes.
//
// impersonate: an access token (or an ID token) of one shared account. Google cannot take it back: it dies at its end,
// and a Revocation says so. What narrows it is its OAuth scopes, a Credential Access Boundary and a short life.
//
// slot: an access token of an account that one task holds at a time. Disabling the account makes Google refuse every
// token of it at once. Enabling it revives them, so an account that was let go rests, disabled, until nothing that was
// made for it would work; only then does another task get it.
//
// key: a service-account key of the broker's own making, bounded by its certificate. Discouraged: deleting a key does not
// end the access tokens that were made with it, which live for up to an hour more, unless the account is the task's own
// (dedicated) and is disabled as well.
//
// It refuses to know who may ask, and keeps no state: who holds which account is on the ledger, and written there before
// Google is asked. Google's client library retries by itself; that is off, for a mint that is asked twice is two tokens.
package gcp
