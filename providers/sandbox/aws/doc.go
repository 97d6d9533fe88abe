// Package aws is a loopback stand-in for AWS STS, IAM and S3, at the wire: the real
// AWS SDK talks to it, and it enforces what AWS enforces. It verifies Signature
// Version 4 on every request, mints sessions that expire, and allows a request only
// where the role's policies and the session policy both do and nothing denies it.
//
// One [Server] answers for all three services on one endpoint, path-style for S3; a
// request's credential scope says which service it is for. It keeps its state in
// memory and reads time from [Config].Now.
//
// The broker calls as the account's user, as a session that its platform gave it
// ([Server.StartSession]), or with a web identity ([Server.RegisterWebIdentity]).
//
// For tests it also offers inspection ([Server.Sessions], [Server.RolePolicies],
// [Server.PolicyVersions], [Server.AssumeRoleCalls]), what operators do
// ([Server.AddManagedPolicy], [Server.AttachRolePolicy], [Server.SetUserPolicy]), foreign
// edits ([Server.SetRolePolicy], [Server.AddPolicyVersion]) and faults
// ([Server.Inject], [Server.Hold]).
//
// It differs from AWS on purpose, or because AWS does not say, in this:
//
//   - a policy edit takes effect at once, and is seen at once unless a fault says
//     otherwise; AWS takes up to some minutes;
//   - what the policy evaluator does not understand fails closed (package iampolicy);
//   - a caller needs its own policy's Allow to assume a role that trusts it by name;
//   - a tag or a source identity that chaining hands down needs sts:TagSession or
//     sts:SetSourceIdentity like one that is asked for;
//   - a web identity token is known by its text and never read, and brings no tags;
//   - a managed session policy is what it was when the session was made;
//   - PackedPolicySize is a plain sum of lengths against 4,096 (AWS's packing is secret);
//   - any region is accepted; presigned URLs, multipart uploads, copies, versions
//     and ACLs are answered with NotImplemented or refused, never half done.
//
// It must never be a default in production: whoever holds its broker key is trusted.
package aws
