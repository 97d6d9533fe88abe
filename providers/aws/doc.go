// Package aws mints AWS sessions by STS AssumeRole, one a version, and ends single sessions before their time.
//
// It decides what a scope means to IAM: each version gets a session policy of its own, made of its scopes' statements,
// with the version's end and a ban on STS and IAM written into it. The session is named after the version, so that
// CloudTrail tells tasks apart. It refuses to know who may ask, and keeps no state: what must be denied at a role is
// read from the ledger each time.
//
// STS cannot take a session back. What can be done, and is done by Revoke: a policy on the role that denies everything
// to the sessions on a list. AWS takes up to a few minutes to obey it everywhere; that is the lag a Revocation states.
package aws
