-- Shares of pools: how many of a pool's keys one caller may have held, resting or quarantined at once. For that each seat
-- and each quarantine has the caller that it counts for. Everything is an addition, so the version before this one may go on
-- serving; what it takes counts for nobody.

-- +goose Up

-- Who has, or had last, a seat that is not available.
ALTER TABLE slots ADD COLUMN IF NOT EXISTS caller text NOT NULL DEFAULT '';
UPDATE slots SET caller = c.caller FROM credentials c WHERE c.id = slots.credential_id;
CREATE INDEX IF NOT EXISTS slots_by_caller ON slots (pool, caller) WHERE caller <> '';

-- caller brought the key into quarantine (empty: an operator did, or it was confirmed); struck_by reported the refusal that
-- was counted last; doubted_by reported refusals of the value doubted (a fingerprint) beyond their shares, and nobody has
-- confirmed these.
ALTER TABLE keys
    ADD COLUMN IF NOT EXISTS caller text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS struck_by text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS doubted bytea,
    ADD COLUMN IF NOT EXISTS doubted_by text[] NOT NULL DEFAULT '{}';

-- A key that a credential has left, because its upstream refused it, while versions that have its value are alive: a
-- revocation of these would quarantine it. So it counts for the caller until they have ended.
CREATE TABLE IF NOT EXISTS left_keys (
    credential_id text NOT NULL REFERENCES credentials (id),
    pool          text NOT NULL,
    name          text NOT NULL,
    caller        text NOT NULL,
    fingerprint   bytea NOT NULL,
    PRIMARY KEY (credential_id, pool, name, fingerprint)
);
CREATE INDEX IF NOT EXISTS left_keys_by_caller ON left_keys (pool, caller);
GRANT SELECT, INSERT, UPDATE, DELETE ON left_keys TO taskpass_service;

-- Which of a pool's keys, given with the fingerprints of their present values, a caller has held, resting or quarantined,
-- and when each is due back; NULL where nobody knows. A key whose value has changed since counts only while it is held.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION keys_used_by(of_pool text, of_caller text, names text[], fingerprints bytea[], at timestamptz)
    RETURNS TABLE (name text, back timestamptz) LANGUAGE sql STABLE AS $$
    SELECT a.name, min(u.back)
    FROM (
        SELECT s.name, s.fingerprint, s.state = 'held' AS held,
            CASE s.state WHEN 'held' THEN s.due_back_at WHEN 'resting' THEN s.rest_until END AS back
        FROM slots s WHERE s.pool = of_pool AND s.caller = of_caller AND s.caller <> '' AND (s.state IN ('held', 'quarantined')
            OR s.state = 'resting' AND (s.rest_until IS NULL OR s.rest_until > at))
        UNION ALL
        SELECT k.name, NULLIF(k.refused, ''::bytea), false, NULL
        FROM keys k WHERE k.pool = of_pool AND k.caller = of_caller AND k.caller <> '' AND k.state = 'quarantined'
        UNION ALL
        SELECT l.name, l.fingerprint, false, v.due_at
        FROM left_keys l JOIN versions v
            ON v.credential_id = l.credential_id AND v.fingerprint = l.fingerprint AND v.due_at IS NOT NULL
        WHERE l.pool = of_pool AND l.caller = of_caller
    ) u JOIN unnest(names, fingerprints) AS a (name, fingerprint) ON a.name = u.name
        AND (u.held OR u.fingerprint IS NULL OR u.fingerprint = a.fingerprint)
    GROUP BY a.name
$$;
-- +goose StatementEnd

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
