-- Queries of the ledger. sqlc turns each into a typed function; BeginCredential and MoveVersion are sent by the group
-- committer, many at once.

-- BeginCredential and BeginVersion break the constraint versions_a_known_state when the task, or one above it, has ended;
-- the latter also when the credential's own end was asked for.
-- name: BeginCredential :exec
WITH credential AS (
    INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms,
        created_at, hard_end_at, parent_task_id)
    VALUES (@credential_id, @caller, @task_id, @agent_id, @profile, @provider, @requested, @scopes, @metadata, @ttl_ms,
        @created_at, @hard_end_at, @parent_task_id)
)
INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, due_at, unclaimed)
VALUES (@version_id, @credential_id, @number, @provider,
    CASE WHEN EXISTS (SELECT FROM tasks t WHERE t.caller = @caller AND t.id = @task_id) AND task_has_ended(@caller, @task_id)
        THEN 'moved' ELSE @state::text END,
    @issued_at, @expires_at, @self_expires, @upstream, @due_at, @unclaimed);

-- BeginVersion breaks the constraint versions_credential_id_number_key when another version took the number.
-- name: BeginVersion :exec
INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, due_at, ungiven)
VALUES (@id, @credential_id, @number, @provider,
    CASE WHEN EXISTS (SELECT FROM versions o WHERE o.credential_id = @credential_id AND o.cause IN ('revoked', 'task_ended'))
        OR EXISTS (SELECT FROM tasks t WHERE t.caller = @caller AND t.id = @task_id) AND task_has_ended(@caller, @task_id)
        THEN 'moved' ELSE @state::text END,
    @issued_at, @expires_at, @self_expires, @upstream, @due_at, @ungiven);

-- name: LiveCounts :many
SELECT kind, key, live FROM live_counts
WHERE kind = ANY (@kinds::text[]) AND key = ANY (@keys::text[]);

-- name: DropIdleCounts :exec
DELETE FROM live_counts WHERE (kind, key) IN (
    SELECT l.kind, l.key FROM live_counts l WHERE l.live = 0 AND l.kind IN ('task', 'agent') LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- MoveVersion breaks the constraint versions_a_known_state when the version is not where the caller thinks it is, or when it would
-- become active though its end was asked for meanwhile, or its task or one of that one's parents has ended. So it takes
-- the event that was to be written in the same transaction with it.
-- name: MoveVersion :exec
UPDATE versions SET
    state = CASE
        WHEN NOT (versions.state = ANY (@from_states::text[]) AND versions.unclaimed = @unclaimed) THEN 'moved'
        WHEN @state::text = 'active' AND (versions.cause <> ''
            OR EXISTS (SELECT FROM versions o
                WHERE o.credential_id = versions.credential_id AND o.cause IN ('revoked', 'task_ended'))
            OR EXISTS (SELECT FROM tasks t WHERE t.caller = @caller AND t.id = @task_id)
            AND task_has_ended(@caller, @task_id)) THEN 'moved'
        ELSE @state::text END,
    upstream_expires_at = sqlc.narg(upstream_expires_at), upstream_ids = @upstream_ids, trace = @trace,
    fingerprint = @fingerprint,
    sealed = CASE WHEN @state IN ('revoked', 'expired', 'failed') THEN NULL ELSE COALESCE(@sealed, versions.sealed) END,
    cause = CASE WHEN versions.state = 'issuing' AND versions.cause <> '' AND @state IN ('lost', 'failed')
        THEN versions.cause ELSE @cause END,
    reason = @reason, result = @result, effective_at = sqlc.narg(effective_at), basis = @basis,
    last_error = @last_error, attempts = @attempts, due_at = sqlc.narg(due_at), ended_at = sqlc.narg(ended_at)
WHERE versions.id = @id;

-- LockOwnID has activations with the same upstream id wait for each other, so that the second sees the first's event.
-- name: LockOwnID :exec
SELECT pg_advisory_xact_lock(hashtextextended('upstream id ' || @own_id::text, 0));

-- RefuseKnownID, after the activation's own event, fails it by versions_active_has_secret if another event has its upstream
-- id (the first after the version's). It looks at events since a time before which nothing can be alive, so that few
-- partitions are read.
-- name: RefuseKnownID :exec
UPDATE versions SET sealed = NULL
WHERE versions.id = @id AND EXISTS (SELECT FROM events e WHERE e.upstream_ids[2] = @own_id::text AND e.at > @since OFFSET 1);

-- SucceedVersion makes a version that was just activated the current one; those before it stay good for the overlap.
-- name: SucceedVersion :exec
WITH successor AS (
    UPDATE credentials SET current = @number WHERE credentials.id = @credential_id AND current < @number
)
UPDATE versions SET cause = 'replaced', due_at = LEAST(expires_at, @until::timestamptz), succeed = false
WHERE versions.credential_id = @credential_id AND versions.number < @number AND state = 'active' AND cause = '';

-- AskIssuingToEnd keeps a version that is just being minted from becoming active. It waits for an activation that is
-- under way, and then finds nothing to change: the caller must look again.
-- name: AskIssuingToEnd :execrows
UPDATE versions SET cause = CASE WHEN cause = '' THEN @cause ELSE cause END
WHERE id = @id AND state = 'issuing' AND NOT unclaimed;

-- FindCredential gives the version that is spoken of: the current one; once that has ended, one that is still alive, for
-- as long as there is any. So a credential is not said to be ended while a version of it may work.
-- name: FindCredential :one
SELECT sqlc.embed(credentials), sqlc.embed(versions)
FROM credentials JOIN versions ON versions.credential_id = credentials.id AND versions.number = (
    SELECT x.number FROM versions x
    WHERE x.credential_id = credentials.id AND (x.number = credentials.current OR x.due_at IS NOT NULL)
    ORDER BY x.number = credentials.current AND x.due_at IS NOT NULL DESC, x.due_at IS NOT NULL DESC, x.number DESC LIMIT 1)
WHERE credentials.id = $1;

-- name: LatestVersion :one
SELECT sqlc.embed(credentials), sqlc.embed(versions)
FROM credentials JOIN versions ON versions.credential_id = credentials.id
WHERE credentials.id = $1 ORDER BY versions.number DESC LIMIT 1;

-- name: AliveVersions :many
SELECT sqlc.embed(credentials), sqlc.embed(versions)
FROM credentials JOIN versions ON versions.credential_id = credentials.id
WHERE credentials.id = $1 AND versions.due_at IS NOT NULL ORDER BY versions.number;

-- name: FindVersion :one
SELECT sqlc.embed(credentials), sqlc.embed(versions)
FROM versions JOIN credentials ON credentials.id = versions.credential_id WHERE versions.id = $1;

-- Delivered finds a version that was active, which alone gets a fingerprint, and was not abandoned.
-- name: Delivered :one
SELECT EXISTS (SELECT FROM versions WHERE credential_id = $1 AND fingerprint IS NOT NULL AND cause <> 'abandoned');

-- name: SealedVersion :one
SELECT sealed FROM versions WHERE id = $1;

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

-- AddSlots only reads when all are known.
-- name: AddSlots :execrows
INSERT INTO slots (pool, name, seat, state)
SELECT @pool, n.name, g.seat, 'available'
FROM (SELECT unnest(@names::text[]) AS name, unnest(@seats::int[]) AS seats) n, generate_series(1, n.seats) AS g (seat)
WHERE NOT EXISTS (SELECT FROM slots o WHERE o.pool = @pool AND o.name = n.name AND o.seat = g.seat)
ORDER BY n.name, g.seat
ON CONFLICT DO NOTHING;

-- KeepSlot lets a credential's next version have the key that it holds already, at its present value, unless that value is
-- in quarantine or the key was retired.
-- name: KeepSlot :one
UPDATE slots SET fingerprint = k.fingerprint, due_back_at = GREATEST(due_back_at, @due_back_at)
FROM (SELECT unnest(@names::text[]) AS name, unnest(@fingerprints::bytea[]) AS fingerprint) k
WHERE slots.pool = @pool AND slots.name = k.name AND slots.credential_id = @credential_id AND slots.state = 'held'
  AND NOT EXISTS (SELECT FROM keys x WHERE x.pool = slots.pool AND x.name = slots.name
    AND (x.state = 'retired' OR x.state = 'quarantined' AND x.refused IN (k.fingerprint, '')))
RETURNING slots.name;

-- TakeSlot gives a free seat: at the key of the lowest rank, the agent's own last one first, then the least recently used.
-- What rests, or is in quarantine, is free once its time is over or its value has changed; at a key of which a seat is in
-- quarantine no other is given. What another transaction is just taking is passed over, and a value that was read just before
-- it was replaced. A caller that has used up its share (most of all the pool's keys, or most_offered of those that are
-- offered; zero: no share) gets a seat only at a key that counts for it already. The statement must be sent behind the
-- lock of this pool and caller, or two that are sent at once may both be within the share.
-- name: TakeSlot :one
WITH mine AS MATERIALIZED (
    SELECT u.name FROM keys_used_by(@pool, @caller, @all_names::text[], @all_fingerprints::bytea[], @now) AS u (name, back) WHERE @most::int > 0
)
UPDATE slots SET state = 'held', credential_id = @credential_id, agent_id = @agent_id, caller = @caller, fingerprint = chosen.fingerprint,
    last_used_at = @now, due_back_at = @due_back_at, rest_until = NULL
FROM (
    SELECT s.pool, s.name, s.seat, k.fingerprint
    FROM slots s JOIN (SELECT unnest(@names::text[]) AS name, unnest(@fingerprints::bytea[]) AS fingerprint,
            unnest(@seats::int[]) AS seats, unnest(@ranks::int[]) AS rank) k
        ON k.name = s.name AND s.seat <= k.seats
    WHERE s.pool = @pool
      AND (s.state = 'available'
        OR s.state = 'resting' AND (s.rest_until <= @now OR s.fingerprint <> k.fingerprint)
        OR s.state = 'quarantined' AND s.fingerprint <> k.fingerprint)
      AND NOT EXISTS (SELECT FROM keys x WHERE x.pool = s.pool AND x.name = s.name
        AND (x.state = 'retired' OR x.state = 'quarantined' AND x.refused IN (k.fingerprint, '')
          OR EXISTS (SELECT FROM rotations r WHERE r.pool = x.pool AND r.name = x.name AND r.outcome <> 'aborted'
            AND r.old_fingerprint = k.fingerprint AND r.new_fingerprint = x.fingerprint)))
      AND NOT EXISTS (SELECT FROM slots o WHERE o.fingerprint = k.fingerprint
        AND (o.state = 'quarantined'
          OR (o.pool, o.name) <> (s.pool, s.name) AND (o.state = 'held' OR o.state = 'resting' AND (o.rest_until IS NULL OR o.rest_until > @now))))
      AND (@most::int = 0 OR EXISTS (SELECT FROM mine m WHERE m.name = s.name)
        OR (SELECT count(*) FROM mine) < @most::int
          AND (@most_offered::int = 0 OR (SELECT count(*) FROM mine m WHERE m.name = ANY (@names::text[])) < @most_offered::int))
    ORDER BY k.rank, s.agent_id = @agent_id DESC, CASE WHEN s.agent_id = @agent_id THEN s.last_used_at END DESC NULLS LAST,
        s.last_used_at NULLS FIRST, s.name, s.seat
    LIMIT 1 FOR UPDATE OF s SKIP LOCKED
) chosen
WHERE slots.pool = chosen.pool AND slots.name = chosen.name AND slots.seat = chosen.seat
RETURNING slots.name;

-- ShareUsed tells how many keys count for a caller, of all the pool's and of those that are offered, and when the first
-- of them is due back; NULL: nobody knows.
-- name: ShareUsed :one
SELECT count(*) AS used, count(*) FILTER (WHERE u.name = ANY (@names::text[])) AS offered, min(u.back) AS back
FROM keys_used_by(@pool, @caller, @all_names::text[], @all_fingerprints::bytea[], @now) AS u (name, back);

-- name: NextSlotBack :one
SELECT min(back)::timestamptz FROM (
    SELECT CASE s.state WHEN 'held' THEN s.due_back_at WHEN 'resting' THEN s.rest_until END AS back FROM slots s
    WHERE s.pool = @pool AND s.name = ANY (@names::text[])
      AND NOT EXISTS (SELECT FROM keys x WHERE x.pool = s.pool AND x.name = s.name AND x.state <> 'active')
) b HAVING min(back) IS NOT NULL;

-- name: HeldSlot :one
SELECT name, fingerprint FROM slots WHERE credential_id = $1;

-- ReleaseSlot waits for the last of the credential's versions that still needs the key: one that is good, or one that was
-- revoked and waits for the key's present value to be replaced. Of two that end at the same moment either gives it back.
-- name: ReleaseSlot :exec
UPDATE slots SET credential_id = NULL, last_used_at = @now, due_back_at = NULL,
    state = CASE WHEN @until_rotated::boolean OR @rest_until::timestamptz > @now THEN 'resting' ELSE 'available' END,
    caller = CASE WHEN @until_rotated OR @rest_until > @now THEN slots.caller ELSE '' END,
    rest_until = CASE WHEN NOT @until_rotated AND @rest_until > @now THEN @rest_until END
WHERE slots.credential_id = @credential_id AND NOT EXISTS (
    SELECT FROM versions v WHERE v.credential_id = @credential_id AND v.id <> @version_id AND v.due_at IS NOT NULL
      AND (v.state IN ('issuing', 'active') OR v.cause = 'revoked' AND v.fingerprint = @present));

-- LeaveSlot frees a credential of a key that its upstream refuses, so that its next version gets another one. The seat rests
-- until the given time, without one until the credential was to give it back, or until the key's value has changed.
-- Where its refusal is confirmed it counts for nobody.
-- name: LeaveSlot :execrows
WITH had AS (
    SELECT s.pool, s.name, s.seat, s.caller, s.fingerprint FROM slots s
    WHERE s.credential_id = @credential_id AND s.state = 'held'
      AND (@name::text = '' OR s.name = @name AND s.fingerprint = @fingerprint) FOR UPDATE
), noted AS (
    INSERT INTO left_keys (credential_id, pool, name, caller, fingerprint)
    SELECT @credential_id, had.pool, had.name, had.caller, had.fingerprint FROM had
    WHERE NOT @confirmed::boolean AND had.caller <> '' AND had.fingerprint IS NOT NULL
    ON CONFLICT DO NOTHING
)
UPDATE slots SET state = 'resting', rest_until = CASE WHEN NOT @until_rotated::boolean THEN COALESCE(sqlc.narg(rest_until), due_back_at) END,
    credential_id = NULL, due_back_at = NULL, caller = CASE WHEN @confirmed::boolean THEN '' ELSE slots.caller END
FROM had WHERE slots.pool = had.pool AND slots.name = had.name AND slots.seat = had.seat AND slots.credential_id = @credential_id;

-- DropLeftKeys forgets keys that were left by credentials of which no version with that value is alive.
-- name: DropLeftKeys :exec
DELETE FROM left_keys WHERE (credential_id, pool, name, fingerprint) IN (
    SELECT l.credential_id, l.pool, l.name, l.fingerprint FROM left_keys l
    WHERE NOT EXISTS (SELECT FROM versions v WHERE v.credential_id = l.credential_id AND v.fingerprint = l.fingerprint AND v.due_at IS NOT NULL)
    LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: QuarantineSlot :exec
UPDATE slots SET state = 'quarantined', due_back_at = NULL WHERE credential_id = @credential_id;

-- SlotStates tells each seat's state, or that of its key where that forbids it to be taken.
-- name: SlotStates :many
SELECT s.pool, (CASE WHEN k.state <> 'active' THEN k.state
    WHEN s.state = 'resting' AND s.rest_until <= @now THEN 'available' ELSE s.state END)::text AS state, count(*) AS keys
FROM slots s LEFT JOIN keys k ON k.pool = s.pool AND k.name = s.name GROUP BY 1, 2;

-- name: SealedKeys :many
SELECT name, value_id, sealed, vendor_id, scopes, labels FROM keys
WHERE pool = @pool AND sealed IS NOT NULL AND state <> 'retired' ORDER BY name;

-- AddKey leaves alone what was handed in before, or is retired. A key of that name that was only looked at, by a reference
-- that is configured no more, gets the value.
-- name: AddKey :execrows
INSERT INTO keys (pool, name, value_id, sealed, vendor_id, scopes, labels, fingerprint, changed_at)
VALUES (@pool, @name, @value_id, @sealed, @vendor_id, @scopes, @labels, @fingerprint, @now)
ON CONFLICT (pool, name) DO UPDATE SET value_id = EXCLUDED.value_id, sealed = EXCLUDED.sealed, vendor_id = EXCLUDED.vendor_id,
    scopes = EXCLUDED.scopes, labels = EXCLUDED.labels
WHERE keys.value_id IS NULL AND keys.state <> 'retired';

-- name: FindKey :one
SELECT sqlc.embed(keys) FROM keys WHERE pool = @pool AND name = @name;

-- name: LockKey :one
SELECT sqlc.embed(keys) FROM keys WHERE pool = @pool AND name = @name FOR UPDATE;

-- name: KeysOf :many
SELECT sqlc.embed(keys) FROM keys WHERE pool = @pool ORDER BY name;

-- name: SeatsOf :many
SELECT name, state, count(*) AS seats, min(CASE state WHEN 'held' THEN due_back_at WHEN 'resting' THEN rest_until END) AS back
FROM slots WHERE pool = @pool GROUP BY name, state;

-- name: KnowKey :exec
INSERT INTO keys (pool, name) VALUES (@pool, @name) ON CONFLICT DO NOTHING;

-- name: SetKeyState :exec
UPDATE keys SET state = @state, why = @why, refused = CASE WHEN @state = 'quarantined' THEN COALESCE(@refused, fingerprint, ''::bytea) ELSE NULL END,
    strikes = 0, caller = @caller, doubted_by = '{}', sealed = CASE WHEN @state = 'retired' THEN NULL ELSE sealed END
WHERE pool = @pool AND name = @name;

-- KeyValueSeen takes in a present value: one that was in quarantine, and comes back, is again.
-- name: KeyValueSeen :exec
UPDATE keys SET fingerprint = @fingerprint, changed_at = @now, strikes = CASE WHEN struck = @fingerprint THEN strikes ELSE 0 END,
    state = CASE WHEN state = 'retired' THEN state WHEN refused IN (@fingerprint, '') THEN 'quarantined' ELSE 'active' END,
    refused = CASE WHEN refused = '' THEN @fingerprint ELSE refused END
WHERE pool = @pool AND name = @name;

-- WasRevoked tells whether a version that had a value was revoked, and waits for that value's end.
-- name: WasRevoked :one
SELECT EXISTS (SELECT FROM versions WHERE state IN ('revoking', 'stuck') AND cause = 'revoked' AND fingerprint = @fingerprint
    AND upstream = @upstream)::boolean;

-- Draining tells whether a value may still be in use, or come back: its rotation is under way.
-- name: Draining :one
SELECT EXISTS (SELECT FROM rotations r WHERE r.pool = @pool AND r.name = @name AND r.ended_at IS NULL AND r.old_fingerprint = @fingerprint);

-- name: SetKeyValue :exec
UPDATE keys SET value_id = @value_id, sealed = @sealed, vendor_id = @vendor_id WHERE pool = @pool AND name = @name;

-- StrikeKey counts, with a refusal, those of the same value that other callers reported beyond their shares: it
-- confirms them.
-- name: StrikeKey :one
UPDATE keys SET strikes = CASE WHEN struck = @fingerprint THEN strikes ELSE 0 END + 1
        + CASE WHEN doubted = @fingerprint THEN cardinality(array_remove(doubted_by, @caller::text)) ELSE 0 END,
    struck = @fingerprint, struck_by = @caller::text, doubted_by = '{}'
WHERE pool = @pool AND name = @name RETURNING strikes;

-- DoubtKey notes a refusal that a caller reported beyond its share, and tells whether another caller has reported the
-- same value. Eight callers are enough to know.
-- name: DoubtKey :one
UPDATE keys SET doubted = @fingerprint, doubted_by = CASE
        WHEN doubted IS DISTINCT FROM @fingerprint THEN ARRAY[@caller::text]
        WHEN @caller = ANY (doubted_by) OR cardinality(doubted_by) >= 8 THEN doubted_by
        ELSE doubted_by || @caller::text END
WHERE pool = @pool AND name = @name
RETURNING (cardinality(array_remove(doubted_by, @caller::text)) > 0
    OR strikes > 0 AND struck = @fingerprint AND struck_by NOT IN ('', @caller::text))::boolean AS confirmed;

-- name: PardonKey :exec
UPDATE keys SET strikes = 0, doubted_by = '{}' WHERE pool = @pool AND name = @name AND (strikes > 0 OR cardinality(doubted_by) > 0);

-- name: OpenRotation :one
SELECT sqlc.embed(rotations) FROM rotations WHERE pool = @pool AND name = @name AND ended_at IS NULL;

-- name: OpenRotations :many
SELECT sqlc.embed(rotations) FROM rotations WHERE pool = @pool AND ended_at IS NULL ORDER BY name;

-- name: BeginRotation :exec
INSERT INTO rotations (id, pool, name, old_fingerprint, new_fingerprint, old_value_id, old_sealed, old_vendor_id, started_at, deadline)
VALUES (@id, @pool, @name, @old_fingerprint, @new_fingerprint, @old_value_id, @old_sealed, @old_vendor_id, @started_at, @deadline);

-- name: EndRotation :execrows
UPDATE rotations SET ended_at = @now, outcome = @outcome, old_sealed = NULL WHERE id = @id AND ended_at IS NULL;

-- name: RetiredRotation :exec
UPDATE rotations SET retired_at = @now WHERE id = @id;

-- Unretired lists ended rotations whose old value the vendor could refuse and does not yet.
-- name: Unretired :many
SELECT sqlc.embed(rotations) FROM rotations WHERE pool = @pool AND outcome IN ('moved', 'deadline') AND retired_at IS NULL AND old_vendor_id <> '' ORDER BY started_at;

-- Succeed has the current version of every holder of a key that bears another value than the new one followed by a version
-- that bears it.
-- name: Succeed :execrows
UPDATE versions SET succeed = true, due_at = LEAST(due_at, @now)
FROM slots, credentials
WHERE slots.pool = @pool AND slots.name = @name AND slots.state = 'held' AND credentials.id = slots.credential_id
  AND versions.credential_id = credentials.id AND versions.number = credentials.current
  AND versions.state = 'active' AND versions.cause = '' AND NOT versions.succeed AND versions.fingerprint <> @fingerprint;

-- Holders counts also who is just being given the key: it may be the value of before.
-- name: Holders :one
SELECT count(*) AS holders, count(*) FILTER (WHERE v.fingerprint = @fingerprint AND NOT v.ungiven) AS moved
FROM slots s JOIN credentials c ON c.id = s.credential_id JOIN versions v ON v.credential_id = c.id AND v.number = c.current
WHERE s.pool = @pool AND s.name = @name AND s.state = 'held' AND v.state IN ('issuing', 'active');

-- SoonUpkeepOf has where a version lives looked at soon.
-- name: SoonUpkeepOf :exec
UPDATE upkeep SET due_at = LEAST(upkeep.due_at, @at) FROM versions WHERE versions.id = @id AND upkeep.upstream = versions.upstream;

-- name: GiveVersion :exec
UPDATE versions SET ungiven = false WHERE id = @id AND ungiven;

-- StrikeCredential counts a version once, however often it is reported. Only a version that was not refused itself pardons
-- the row: the holder of one that was has been told to move on, or to halt.
-- name: StrikeCredential :one
UPDATE credentials SET strikes = CASE WHEN struck = @number THEN strikes WHEN @pardon::boolean THEN 0 ELSE strikes + 1 END,
    struck = CASE WHEN @pardon AND struck <> @number THEN 0 ELSE @number END
WHERE id = @id RETURNING strikes;

-- PoolPace is how many keys of each pool are free, how many were taken in the last ten minutes, and how many come back in
-- the next ten.
-- name: PoolPace :many
SELECT s.pool, count(*) FILTER (WHERE s.state = 'available' OR s.state = 'resting' AND s.rest_until <= @now::timestamptz) AS free,
    count(*) FILTER (WHERE s.state = 'held' AND s.last_used_at > @since::timestamptz) AS taken,
    count(*) FILTER (WHERE s.state = 'held' AND s.due_back_at <= @until::timestamptz
        OR s.state = 'resting' AND s.rest_until > @now::timestamptz AND s.rest_until <= @until) AS back
FROM slots s WHERE NOT EXISTS (SELECT FROM keys k WHERE k.pool = s.pool AND k.name = s.name AND k.state <> 'active')
GROUP BY s.pool;

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
FROM tokens t JOIN callers c ON c.name = t.caller ORDER BY t.created_at DESC, t.id;

-- name: DeniedAt :many
SELECT id, issued_at, expires_at, state = 'revoked' AS done, trace ->> 'source_identity' IS NOT DISTINCT FROM id AS by_source FROM versions
WHERE upstream = @upstream AND expires_at > @at AND state IN ('revoking', 'stuck', 'revoked') ORDER BY id;

-- CutOff has every active version of an upstream that was issued before a moment ended by the sweeper. What is being ended for another reason keeps it.
-- name: CutOff :exec
UPDATE versions SET cause = CASE WHEN cause = '' THEN 'cut_off' ELSE cause END, due_at = LEAST(due_at, @now)
WHERE upstream = @upstream AND state = 'active' AND issued_at < @issued_before;

-- Forbid takes the event that was to be written with it when it finds nothing: see MoveVersion.
-- name: Forbid :execrows
UPDATE versions SET cause = 'revoked'
FROM credentials WHERE credentials.id = @credential_id AND versions.credential_id = credentials.id
    AND versions.number = credentials.current AND versions.cause = 'cut_off';

-- name: UpkeepNotes :one
SELECT state FROM upkeep WHERE upstream = @upstream;

-- name: SaveUpkeep :exec
INSERT INTO upkeep (upstream, due_at, state, used, room)
VALUES (@upstream, COALESCE(sqlc.narg(look_by)::timestamptz, '-infinity'), @state, @used, @room)
ON CONFLICT (upstream) DO UPDATE SET
    due_at = LEAST(upkeep.due_at, COALESCE(sqlc.narg(look_by)::timestamptz, 'infinity')),
    state = EXCLUDED.state, used = EXCLUDED.used, room = EXCLUDED.room;

-- UpkeepNotDue lists what is known and not due, so that looking costs no write.
-- name: UpkeepNotDue :many
SELECT upstream FROM upkeep WHERE upstream = ANY (@upstreams::text[]) AND due_at > @now;

-- name: ClaimUpkeep :many
INSERT INTO upkeep (upstream, due_at)
SELECT u, @until FROM unnest(@upstreams::text[]) AS u ORDER BY u
ON CONFLICT (upstream) DO UPDATE SET due_at = EXCLUDED.due_at WHERE upkeep.due_at <= @now
RETURNING upstream;

-- name: KeptUpkeep :exec
UPDATE upkeep SET due_at = CASE WHEN due_at < @leased THEN LEAST(due_at, @next) ELSE @next END
WHERE upstream = @upstream;

-- name: SoonUpkeep :exec
INSERT INTO upkeep (upstream, due_at) VALUES (@upstream, @at)
ON CONFLICT (upstream) DO UPDATE SET due_at = LEAST(upkeep.due_at, EXCLUDED.due_at);

-- name: UpkeepFill :many
SELECT upstream, used, room FROM upkeep WHERE room > 0;

-- AddTask leaves a task that holds something where it is when the parent has ended: a request that is refused ends nothing.
-- name: AddTask :exec
INSERT INTO tasks (caller, id, parent_id, created_at)
SELECT @caller, @id, @parent_id::text, @created_at
WHERE NOT (task_has_ended(@caller, @parent_id)
    AND EXISTS (SELECT FROM credentials c WHERE c.task_id = @id AND c.caller = @caller))
ON CONFLICT DO NOTHING;

-- FindTasks also finds tasks of which only credentials are known, or only that they are the parent of another one: one row
-- for each caller, and none is left out. A parent is looked for caller by caller, for that is how tasks_by_parent begins.
-- name: FindTasks :many
SELECT t.caller::text AS caller, COALESCE(k.parent_id, '')::text AS parent_id, k.ended_at, COALESCE(k.outcome, '')::text AS outcome
FROM (
    SELECT DISTINCT c.caller FROM credentials c WHERE c.task_id = @id AND (@caller::text = '' OR c.caller = @caller)
    UNION
    SELECT o.caller FROM tasks o WHERE o.id = @id AND (@caller::text = '' OR o.caller = @caller)
    UNION
    SELECT w.name FROM callers w
        CROSS JOIN LATERAL (SELECT FROM tasks o WHERE o.caller = w.name AND o.parent_id = @id LIMIT 1) o
    WHERE @caller::text = '' OR w.name = @caller
) t LEFT JOIN tasks k ON k.caller = t.caller AND k.id = @id
ORDER BY t.caller;

-- name: ParentOf :one
SELECT parent_id, ended_at FROM tasks WHERE caller = @caller AND id = @id;

-- EndTask ends a task and all below it; only what had not ended counts, so a second end changes nothing.
-- name: EndTask :many
WITH RECURSIVE down AS (
    SELECT @id::text AS id
    UNION
    SELECT t.id FROM tasks t JOIN down ON t.caller = @caller AND t.parent_id = down.id
)
INSERT INTO tasks (caller, id, created_at, ended_at, outcome, due_at)
SELECT @caller, down.id, @now, @now, @outcome, @due_at::timestamptz FROM down ORDER BY down.id
ON CONFLICT (caller, id) DO UPDATE SET ended_at = EXCLUDED.ended_at, outcome = EXCLUDED.outcome, due_at = EXCLUDED.due_at
WHERE tasks.ended_at IS NULL
RETURNING tasks.id, tasks.parent_id;

-- name: ClaimTasks :many
UPDATE tasks SET due_at = @lease_until WHERE (caller, id) IN (
    SELECT t.caller, t.id FROM tasks t WHERE t.due_at <= @now ORDER BY t.due_at LIMIT @max_rows FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: TaskDone :exec
UPDATE tasks SET due_at = NULL WHERE caller = @caller AND id = @id;

-- name: AliveOfTask :many
SELECT sqlc.embed(credentials), sqlc.embed(versions)
FROM credentials JOIN versions ON versions.credential_id = credentials.id
WHERE credentials.task_id = @task_id AND credentials.caller = @caller AND versions.due_at IS NOT NULL
  AND versions.id > @after
ORDER BY versions.id LIMIT @max_rows;

-- TaskPending counts the versions of a task, and of all tasks below it, that have not ended and that something can still
-- end before their time.
-- name: TaskPending :one
WITH RECURSIVE down AS (
    SELECT @id::text AS id
    UNION
    SELECT t.id FROM tasks t JOIN down ON t.caller = @caller AND t.parent_id = down.id
)
SELECT count(*) FROM down
    CROSS JOIN LATERAL (SELECT c.id FROM credentials c WHERE c.task_id = down.id AND c.caller = @caller) c
    JOIN versions v ON v.credential_id = c.id
WHERE v.due_at IS NOT NULL AND v.result <> 'expires';

-- name: AddTicket :exec
INSERT INTO tickets (sha256, credential_id, version_id, sealed, expires_at)
VALUES (@sha256, @credential_id, @version_id, @sealed, @expires_at);

-- name: LockTicket :one
SELECT sqlc.embed(tickets), sqlc.embed(credentials), sqlc.embed(versions)
FROM tickets JOIN credentials ON credentials.id = tickets.credential_id JOIN versions ON versions.id = tickets.version_id
WHERE tickets.sha256 = $1 FOR UPDATE OF tickets, versions;

-- name: UseTicket :exec
UPDATE tickets SET redeemed_at = @now, sealed = NULL WHERE sha256 = @sha256;

-- name: ClaimVersion :exec
UPDATE versions SET unclaimed = false, issued_at = @issued_at, expires_at = @expires_at, due_at = @due_at WHERE id = @id;

-- name: TicketOf :one
SELECT sealed, expires_at, redeemed_at FROM tickets WHERE credential_id = $1;

-- name: VoidTicket :exec
UPDATE tickets SET sealed = NULL WHERE version_id = @version_id;

-- name: AddTaskToken :exec
INSERT INTO task_tokens (sha256, id, caller, task_id, created_at, expires_at)
VALUES (@sha256, @id, @caller, @task_id, @created_at, @expires_at);

-- name: FindTaskToken :one
SELECT sqlc.embed(task_tokens), task_has_ended(task_tokens.caller, task_tokens.task_id)::boolean AS ended
FROM task_tokens WHERE sha256 = $1;

-- AddIdempotency takes the place of a key that has run out; over one that has not it writes NULL, which breaks the
-- not-null constraint of request_sha256.
-- name: AddIdempotency :exec
INSERT INTO idempotency AS i (caller, key_sha256, request_sha256, credentials, seen, expires_at)
VALUES (@caller, @key_sha256, @request_sha256, @credentials, @seen, @expires_at)
ON CONFLICT (caller, key_sha256) DO UPDATE SET
    request_sha256 = CASE WHEN i.expires_at <= @now::timestamptz THEN EXCLUDED.request_sha256 END,
    credentials = EXCLUDED.credentials, seen = EXCLUDED.seen, expires_at = EXCLUDED.expires_at;

-- name: FindIdempotency :one
SELECT * FROM idempotency WHERE caller = @caller AND key_sha256 = @key_sha256;

-- name: DropOldIdempotency :exec
DELETE FROM idempotency WHERE (caller, key_sha256) IN (
    SELECT i.caller, i.key_sha256 FROM idempotency i WHERE i.expires_at < @now LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: DropOldTaskTokens :exec
DELETE FROM task_tokens WHERE sha256 IN (
    SELECT t.sha256 FROM task_tokens t WHERE t.expires_at < @now LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: AddAccounts :execrows
INSERT INTO accounts (email, state)
SELECT email, 'available' FROM unnest(@emails::text[]) AS n (email) ORDER BY email
ON CONFLICT DO NOTHING;

-- KeepAccount lets a credential's next version have the account that it holds already. That its tokens may live longer is
-- on the ledger before the upstream is asked.
-- name: KeepAccount :one
UPDATE accounts SET alive_until = GREATEST(alive_until, @alive_until::timestamptz), last_used_at = @now
WHERE accounts.credential_id = @credential_id AND accounts.state = 'held' AND accounts.email = ANY (@emails::text[])
  AND EXISTS (SELECT FROM versions v WHERE v.id = @version_id AND v.state = 'issuing' AND v.cause = '')
RETURNING accounts.email;

-- TakeAccount gives an account that is free, or of which nothing that was ever made works any more: whoever held it then
-- holds nothing. A version that is no longer being minted gets none, nor a caller for which as many of the accounts count
-- as its share (most; zero: no share). With a share the statement must be sent behind the lock of this caller.
-- name: TakeAccount :one
UPDATE accounts SET state = 'held', last_credential = COALESCE(accounts.credential_id, accounts.last_credential),
    credential_id = @credential_id, version_id = @version_id, last_used_at = @now, alive_until = @alive_until,
    stopped_at = NULL, found = '', awake_at = CASE WHEN chosen.state = 'available' THEN accounts.awake_at ELSE @now END
FROM (
    SELECT a.email, a.state FROM accounts a
    WHERE a.email = ANY (@emails::text[]) AND a.credential_id IS DISTINCT FROM @credential_id
      AND (a.state = 'available' OR a.alive_until <= @now)
      AND (@most::int = 0 OR (
        SELECT count(*) FROM accounts u JOIN credentials c ON c.id = COALESCE(u.credential_id, u.last_credential)
        WHERE u.email = ANY (@emails::text[]) AND c.caller = @caller AND u.state IN ('held', 'resting') AND u.alive_until > @now) < @most)
    ORDER BY a.state = 'available' DESC, a.last_used_at NULLS FIRST, a.email
    LIMIT 1 FOR UPDATE OF a SKIP LOCKED
) chosen
WHERE accounts.email = chosen.email
  AND EXISTS (SELECT FROM versions v WHERE v.id = @version_id AND v.state = 'issuing' AND v.cause = '')
RETURNING accounts.email, (chosen.state = 'available')::bool AS awake, accounts.awake_at;

-- AccountsUsed tells how many of the accounts count for a caller, because its credentials hold them or something that was
-- made for one may still work, and when the first of them is due back; NULL: none counts.
-- name: AccountsUsed :one
SELECT count(*) AS used, min(u.alive_until) AS back
FROM accounts u JOIN credentials c ON c.id = COALESCE(u.credential_id, u.last_credential)
WHERE u.email = ANY (@emails::text[]) AND c.caller = @caller AND u.state IN ('held', 'resting') AND u.alive_until > @now;

-- ProlongAccount says that what was made for a version may work for longer than was asked.
-- name: ProlongAccount :execrows
UPDATE accounts SET alive_until = GREATEST(alive_until, @alive_until::timestamptz)
WHERE credential_id = @credential_id OR last_credential = @credential_id::text AND state = 'resting';

-- name: NextAccountBack :one
SELECT min(alive_until)::timestamptz FROM accounts
WHERE email = ANY (@emails::text[]) AND state <> 'available' AND alive_until > @now HAVING min(alive_until) IS NOT NULL;

-- VacateAccount gives back what a version took for which the upstream surely made nothing: to nobody before a time, if
-- there is one.
-- name: VacateAccount :exec
UPDATE accounts SET state = CASE WHEN sqlc.narg(until)::timestamptz IS NULL THEN 'available' ELSE 'waking' END,
    credential_id = NULL, alive_until = sqlc.narg(until)
WHERE credential_id = @credential_id AND version_id = @version_id AND state = 'held';

-- RestAccount ends a hold, unless another version of the credential needs the account.
-- name: RestAccount :exec
UPDATE accounts SET state = 'resting', last_credential = accounts.credential_id, credential_id = NULL, stopped_at = NULL
WHERE accounts.credential_id = @credential_id AND NOT EXISTS (
    SELECT FROM versions v WHERE v.credential_id = @credential_id AND v.id <> @version_id
      AND v.state IN ('issuing', 'active') AND v.cause IN ('', 'replaced'));

-- name: AccountsOf :many
SELECT email, state, alive_until, stopped_at, found, credential_id, last_used_at FROM accounts
WHERE credential_id = @credential_id OR last_credential = @credential_id::text ORDER BY email;

-- AccountStates tells also which are held by a credential of which no version is alive any more.
-- name: AccountStates :many
SELECT a.email, a.state, a.alive_until, a.stopped_at, a.found, a.credential_id, a.last_used_at,
    (a.state = 'held' AND NOT EXISTS (
        SELECT FROM versions v WHERE v.credential_id = a.credential_id AND v.due_at IS NOT NULL))::bool AS idle
FROM accounts a WHERE a.email = ANY (@emails::text[]) ORDER BY a.email;

-- name: RestIdleAccount :exec
UPDATE accounts SET state = 'resting', last_credential = accounts.credential_id, credential_id = NULL, stopped_at = NULL
WHERE accounts.email = @email AND accounts.state = 'held' AND accounts.credential_id = @credential_id AND NOT EXISTS (
    SELECT FROM versions v WHERE v.credential_id = @credential_id AND v.due_at IS NOT NULL);

-- name: StoppedAccount :exec
UPDATE accounts SET stopped_at = @now WHERE email = @email AND state = 'resting';

-- WakeAccount keeps an account whose rest is over to whoever enables it, until a time.
-- name: WakeAccount :execrows
UPDATE accounts SET state = 'waking', alive_until = @until
WHERE email = @email AND state IN ('resting', 'waking') AND alive_until <= @now;

-- name: AccountAwake :exec
UPDATE accounts SET state = 'available', alive_until = NULL, stopped_at = NULL, found = '', awake_at = @now
WHERE email = @email AND state = 'waking' AND alive_until = @until;

-- name: AccountFound :exec
UPDATE accounts SET found = @found WHERE email = @email;

-- name: CountAccounts :many
SELECT state, count(*) AS accounts FROM accounts GROUP BY state;
