-- The life of a credential: tasks that end, versions that follow each other, tickets, task tokens, idempotent requests,
-- and limits. Everything is an addition, so the version before this one may go on serving.

-- +goose Up

-- A task is on the ledger once it has a parent or an end; most tasks have neither.
CREATE TABLE tasks (
    caller     text NOT NULL,
    id         text NOT NULL,
    parent_id  text,
    created_at timestamptz NOT NULL,
    ended_at   timestamptz,
    outcome    text NOT NULL DEFAULT '',
    due_at     timestamptz, -- its end is not yet carried out
    PRIMARY KEY (caller, id),
    CHECK (due_at IS NULL OR ended_at IS NOT NULL)
);
-- Whether a task, or one above it, has ended.
CREATE FUNCTION task_has_ended(of_caller text, of_id text) RETURNS boolean LANGUAGE sql STABLE AS $$
    WITH RECURSIVE up AS (
        SELECT t.parent_id, t.ended_at FROM tasks t WHERE t.caller = of_caller AND t.id = of_id
        UNION
        SELECT p.parent_id, p.ended_at FROM tasks p JOIN up ON p.caller = of_caller AND p.id = up.parent_id
    )
    SELECT EXISTS (SELECT FROM up WHERE ended_at IS NOT NULL)
$$;
CREATE INDEX tasks_by_parent ON tasks (caller, parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX tasks_by_id ON tasks (id);
CREATE INDEX tasks_due ON tasks (due_at) WHERE due_at IS NOT NULL;

ALTER TABLE credentials
    ADD COLUMN hard_end_at timestamptz; -- no version outlives it
ALTER TABLE versions
    ADD COLUMN unclaimed boolean NOT NULL DEFAULT false, -- its ticket is not yet redeemed: the upstream was not asked
    ADD CONSTRAINT versions_unclaimed_is_issuing CHECK (NOT unclaimed OR state IN ('issuing', 'failed'));

CREATE TABLE tickets (
    sha256        bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    credential_id text NOT NULL UNIQUE REFERENCES credentials (id),
    version_id    text NOT NULL REFERENCES versions (id),
    sealed        bytea, -- the ticket itself, for a repeated request; wiped when it is used or void
    expires_at    timestamptz NOT NULL,
    redeemed_at   timestamptz,
    CHECK (redeemed_at IS NULL OR sealed IS NULL)
);

CREATE TABLE task_tokens (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    id         text NOT NULL UNIQUE,
    caller     text NOT NULL,
    task_id    text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX task_tokens_by_end ON task_tokens (expires_at);

-- A key is kept as its hash: it is the caller's own text.
CREATE TABLE idempotency (
    caller         text NOT NULL,
    key_sha256     bytea NOT NULL CHECK (octet_length(key_sha256) = 32),
    request_sha256 bytea NOT NULL CHECK (octet_length(request_sha256) = 32),
    credentials    text[] NOT NULL,
    seen           int NOT NULL DEFAULT 0, -- the version that a refresh was to follow
    expires_at     timestamptz NOT NULL,
    CONSTRAINT idempotency_one_key PRIMARY KEY (caller, key_sha256)
);
CREATE INDEX idempotency_by_end ON idempotency (expires_at);

-- How many versions are alive for each task, agent, profile and caller. Counted in the transaction of each intent and
-- each end, so the numbers are exact. A count that would pass its limit breaks the constraint.
CREATE TABLE live_counts (
    kind text NOT NULL CHECK (kind IN ('task', 'agent', 'profile', 'caller')),
    key  text NOT NULL,
    live bigint NOT NULL,
    most bigint NOT NULL,           -- the limit, when it was last counted up
    delta bigint NOT NULL DEFAULT 0, -- the latest change
    PRIMARY KEY (kind, key),
    CONSTRAINT live_counts_within_limit CHECK (live >= 0)
) WITH (fillfactor = 50);
INSERT INTO live_counts (kind, key, live, most)
SELECT kind, key, count(*), count(*) FROM versions v JOIN credentials c ON c.id = v.credential_id,
    LATERAL (VALUES ('task', c.caller || '/' || c.task_id), ('agent', c.caller || '/' || c.agent_id),
        ('profile', c.profile), ('caller', c.caller)) AS of (kind, key)
WHERE v.due_at IS NOT NULL GROUP BY kind, key;

GRANT SELECT, INSERT, UPDATE ON tasks, tickets TO taskpass_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON task_tokens, idempotency, live_counts TO taskpass_service;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
