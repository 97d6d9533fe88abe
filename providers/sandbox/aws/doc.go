// Package aws is a loopback stand-in for AWS STS, IAM and S3, at the wire: the real
// AWS SDK talks to it, and it enforces what AWS enforces. It verifies Signature
// Version 4 on every request, mints sessions that expire, and allows a request only
// where the role's policies and the session policy both do and nothing denies it.
//
// One [Server] answers for all three services on one endpoint, path-style for S3; a
// request's credential scope says which service it is for. It keeps its state in
// memory and reads time from [Config].Now.
//
// For tests it also offers inspection ([Server.Sessions], [Server.RolePolicies],
// [Server.AssumeRoleCalls]), foreign edits ([Server.SetRolePolicy]) and faults
// ([Server.Inject]).
//
// It differs from AWS on purpose, or because AWS does not say, in this:
//
//   - a policy edit takes effect at once; AWS takes up to some minutes;
//   - what the policy evaluator does not understand fails closed (package iampolicy);
//   - a role needs its own policy's Allow to assume a role that trusts it by name;
//   - PackedPolicySize is a plain sum of lengths against 4,096 (AWS's packing is secret);
//   - any region is accepted; presigned URLs, multipart uploads, copies, versions
//     and ACLs are answered with NotImplemented or refused, never half done.
//
// It must never be a default in production: whoever holds its broker key is trusted.
package aws
