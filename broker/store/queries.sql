-- Queries of the ledger. sqlc turns each into a typed function; BeginCredential and MoveVersion are sent by the group
-- committer, many at once.

-- name: BeginCredential :exec
WITH credential AS (
    INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
    VALUES (@credential_id, @caller, @task_id, @agent_id, @profile, @provider, @requested, @scopes, @metadata, @ttl_ms, @created_at)
)
INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, due_at)
VALUES (@version_id, @credential_id, @number, @provider, @state, @issued_at, @expires_at, @self_expires, @upstream, @due_at);

-- MoveVersion breaks the constraint versions_state when the version is not in one of the from states, and so takes the
-- event that was to be written in the same transaction with it.
-- name: MoveVersion :exec
UPDATE versions SET
    state = CASE WHEN state = ANY (@from_states::text[]) THEN @state::text ELSE 'moved' END,
    upstream_expires_at = sqlc.narg(upstream_expires_at), upstream_ids = @upstream_ids, trace = @trace,
    fingerprint = @fingerprint,
    sealed = CASE WHEN @state IN ('revoked', 'expired', 'failed') THEN NULL ELSE COALESCE(@sealed, sealed) END,
    cause = @cause, reason = @reason, result = @result, effective_at = sqlc.narg(effective_at), basis = @basis,
    last_error = @last_error, attempts = @attempts, due_at = sqlc.narg(due_at), ended_at = sqlc.narg(ended_at)
WHERE id = @id;

-- name: FindCredential :one
SELECT sqlc.embed(credentials), sqlc.embed(versions)
FROM credentials JOIN versions ON versions.credential_id = credentials.id AND versions.number = credentials.current
WHERE credentials.id = $1;

-- ClaimDue leases what is due, oldest first. An attempt is counted for what is being ended. The versions are given as
-- they were before, with the time they were due.
-- name: ClaimDue :many
WITH due AS (
    SELECT d.id, d.due_at FROM versions d
    WHERE d.provider = @provider AND d.due_at <= @now
    ORDER BY d.due_at LIMIT @max_rows FOR UPDATE SKIP LOCKED
), leased AS (
    UPDATE versions SET due_at = @lease_until,
        attempts = attempts + CASE WHEN state IN ('revoking', 'stuck') THEN 1 ELSE 0 END
    FROM due WHERE versions.id = due.id
    RETURNING versions.id, versions.attempts
)
SELECT sqlc.embed(credentials), sqlc.embed(versions), leased.attempts AS attempts_now
FROM leased JOIN versions ON versions.id = leased.id JOIN credentials ON credentials.id = versions.credential_id
ORDER BY versions.due_at;

-- DueProviders skips through the index versions_due, so that it costs the same however much is alive.
-- name: DueProviders :many
WITH RECURSIVE named AS (
    (SELECT provider FROM versions WHERE due_at IS NOT NULL ORDER BY provider LIMIT 1)
    UNION ALL
    SELECT (SELECT v.provider FROM versions v
            WHERE v.due_at IS NOT NULL AND v.provider > named.provider ORDER BY v.provider LIMIT 1)
    FROM named WHERE named.provider IS NOT NULL
)
SELECT provider::text FROM named
WHERE provider IS NOT NULL
  AND EXISTS (SELECT FROM versions v WHERE v.provider = named.provider AND v.due_at <= @now);

-- name: AddSlots :execrows
INSERT INTO slots (pool, name, state)
SELECT @pool, unnest(@names::text[]), 'available'
ON CONFLICT DO NOTHING;

-- TakeSlot gives a free key: the agent's own last one first, then the least recently used. A quarantined key whose value
-- has changed is free. What another transaction is just taking is passed over.
-- name: TakeSlot :one
UPDATE slots SET state = 'held', version_id = @version_id, agent_id = @agent_id, fingerprint = chosen.fingerprint,
    last_used_at = @now, due_back_at = @due_back_at
FROM (
    SELECT s.pool, s.name, k.fingerprint
    FROM slots s JOIN (SELECT unnest(@names::text[]) AS name, unnest(@fingerprints::bytea[]) AS fingerprint) k
        ON k.name = s.name
    WHERE s.pool = @pool
      AND (s.state = 'available' OR s.state = 'quarantined' AND s.fingerprint <> k.fingerprint)
      AND NOT EXISTS (SELECT FROM slots o WHERE o.fingerprint = k.fingerprint AND o.state <> 'available')
    ORDER BY s.agent_id = @agent_id DESC, s.last_used_at NULLS FIRST, s.name
    LIMIT 1 FOR UPDATE OF s SKIP LOCKED
) chosen
WHERE slots.pool = chosen.pool AND slots.name = chosen.name
RETURNING slots.name;

-- name: NextSlotBack :one
SELECT min(due_back_at)::timestamptz FROM slots WHERE pool = @pool AND state = 'held' HAVING min(due_back_at) IS NOT NULL;

-- name: HeldSlot :one
SELECT pool, name, fingerprint FROM slots WHERE version_id = $1;

-- name: ReleaseSlot :exec
UPDATE slots SET state = 'available', version_id = NULL, last_used_at = @now, due_back_at = NULL
WHERE version_id = @version_id;

-- name: QuarantineSlot :exec
UPDATE slots SET state = 'quarantined', due_back_at = NULL WHERE version_id = @version_id;

-- name: SlotStates :many
SELECT pool, state, count(*) AS keys FROM slots GROUP BY pool, state;

-- name: CountTroubled :many
SELECT provider, state, count(*) AS versions FROM versions
WHERE state IN ('revoking', 'lost', 'stuck') GROUP BY provider, state;

-- AddCaller answers with the role that the caller has, whether or not it is new.
-- name: AddCaller :one
INSERT INTO callers (name, role) VALUES (@name, @role)
ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name
RETURNING role;

-- name: AddToken :exec
INSERT INTO tokens (id, caller, sha256, created_at, expires_at)
VALUES (@id, @caller, @sha256, @created_at, @expires_at);

-- name: FindToken :one
SELECT t.id, t.caller, c.role, t.expires_at, t.revoked_at
FROM tokens t JOIN callers c ON c.name = t.caller WHERE t.sha256 = $1;

-- name: RevokeToken :one
UPDATE tokens SET revoked_at = COALESCE(revoked_at, @now) WHERE id = @id RETURNING caller;

-- name: ListTokens :many
SELECT t.id, t.caller, c.role, t.created_at, t.expires_at, t.revoked_at
FROM tokens t JOIN callers c ON c.name = t.caller ORDER BY t.created_at DESC, t.id LIMIT 1000;

-- name: DeniedAt :many
SELECT id FROM versions
WHERE upstream = @upstream AND expires_at > @at AND state IN ('revoking', 'stuck', 'revoked') ORDER BY id;
