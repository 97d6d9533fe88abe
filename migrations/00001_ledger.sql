-- The ledger. Owned by taskpass_owner; the service works as a member of taskpass_service, which can add to the record
-- and move versions on, but can delete nothing and alter no event (P4).

-- +goose Up

CREATE TABLE callers (
    name       text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9._:@-]{1,128}$'),
    role       text NOT NULL CHECK (role IN ('orchestrator', 'auditor', 'operator')),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tokens (
    id         text PRIMARY KEY,
    caller     text NOT NULL REFERENCES callers (name),
    sha256     bytea NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL CHECK (expires_at > created_at),
    revoked_at timestamptz
);

CREATE TABLE credentials (
    id         text PRIMARY KEY, -- sorts by time of creation
    caller     text NOT NULL,
    task_id    text NOT NULL,
    agent_id   text NOT NULL,
    profile    text NOT NULL,
    provider   text NOT NULL,
    requested  text[] NOT NULL,
    scopes     text[] NOT NULL,
    metadata   jsonb NOT NULL,
    ttl_ms     bigint NOT NULL CHECK (ttl_ms > 0),
    created_at timestamptz NOT NULL,
    current    int NOT NULL DEFAULT 1 -- the number of the version that is spoken of
);
CREATE INDEX credentials_by_task ON credentials (task_id, id DESC);
CREATE INDEX credentials_by_agent ON credentials (agent_id, id DESC);
CREATE INDEX credentials_by_caller ON credentials (caller, id DESC);
CREATE INDEX credentials_by_profile ON credentials (profile, id DESC);

CREATE TABLE versions (
    id                  text PRIMARY KEY CHECK (id ~ '^[a-z2-7]{16}$'),
    credential_id       text NOT NULL REFERENCES credentials (id),
    number              int NOT NULL CHECK (number > 0),
    provider            text NOT NULL,
    state               text NOT NULL,
    issued_at           timestamptz NOT NULL,
    expires_at          timestamptz NOT NULL CHECK (expires_at > issued_at),
    upstream_expires_at timestamptz,
    self_expires        boolean NOT NULL,
    upstream            text NOT NULL,
    upstream_ids        text[] NOT NULL DEFAULT '{}',
    trace               jsonb NOT NULL DEFAULT '{}',
    fingerprint         bytea,
    sealed              bytea,
    cause               text NOT NULL DEFAULT '',
    reason              text NOT NULL DEFAULT '',
    result              text NOT NULL DEFAULT '',
    effective_at        timestamptz,
    basis               text NOT NULL DEFAULT '',
    last_error          text NOT NULL DEFAULT '',
    attempts            int NOT NULL DEFAULT 0,
    due_at              timestamptz,
    ended_at            timestamptz,
    UNIQUE (credential_id, number),
    -- A move that is not allowed writes the state 'moved' and breaks this constraint: see MoveVersion. PostgreSQL checks
    -- constraints in the order of their names, and this one must be the first to say no.
    CONSTRAINT versions_a_known_state CHECK (state IN
        ('issuing', 'active', 'revoking', 'revoked', 'expired', 'failed', 'lost', 'stuck')),
    -- What may be alive is due for something; what has ended is due for nothing and keeps no secret.
    CONSTRAINT versions_alive_is_due CHECK (CASE WHEN state IN ('revoked', 'expired', 'failed')
        THEN due_at IS NULL AND ended_at IS NOT NULL ELSE due_at IS NOT NULL AND ended_at IS NULL END),
    CONSTRAINT versions_ended_is_wiped CHECK (state NOT IN ('revoked', 'expired', 'failed') OR sealed IS NULL),
    CONSTRAINT versions_active_has_secret CHECK (state <> 'active' OR (sealed IS NOT NULL AND fingerprint IS NOT NULL)),
    CONSTRAINT versions_ending_has_cause CHECK (state NOT IN ('revoking', 'revoked', 'expired', 'lost', 'stuck') OR cause <> ''),
    CONSTRAINT versions_revoked_has_result CHECK (state <> 'revoked' OR (result <> '' AND effective_at IS NOT NULL))
) WITH (fillfactor = 80);
CREATE INDEX versions_due ON versions (provider, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX versions_denied ON versions (upstream, expires_at) WHERE state IN ('revoking', 'stuck', 'revoked');
CREATE INDEX versions_troubled ON versions (state, credential_id DESC) WHERE state IN ('issuing', 'revoking', 'lost', 'stuck', 'failed');

-- The state diagram. A statement that would leave it fails, whoever sends it.
-- +goose StatementBegin
CREATE FUNCTION versions_follow_the_diagram() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.state, NEW.state) NOT IN (
        ('issuing', 'active'), ('issuing', 'failed'), ('issuing', 'lost'),
        ('active', 'revoking'), ('active', 'expired'),
        ('lost', 'revoking'), ('lost', 'expired'),
        ('revoking', 'revoked'), ('revoking', 'expired'), ('revoking', 'stuck'),
        ('stuck', 'revoked'), ('stuck', 'expired')
    ) THEN
        RAISE EXCEPTION 'no way from % to %', OLD.state, NEW.state
            USING ERRCODE = 'check_violation', CONSTRAINT = 'versions_diagram';
    END IF;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER versions_diagram BEFORE UPDATE OF state ON versions FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state <> 'moved')
    EXECUTE FUNCTION versions_follow_the_diagram();

-- Who holds which key of a pool. One row a key, so one holder a key; the fingerprint makes the same key under two
-- names one key all the same.
CREATE TABLE slots (
    pool          text NOT NULL,
    name          text NOT NULL,
    state         text NOT NULL CHECK (state IN ('available', 'held', 'quarantined')),
    credential_id text UNIQUE REFERENCES credentials (id), -- the holder: its versions share the key
    agent_id      text NOT NULL DEFAULT '',
    fingerprint   bytea,
    last_used_at  timestamptz,
    due_back_at   timestamptz,
    PRIMARY KEY (pool, name),
    CONSTRAINT slots_held_by_one CHECK ((state = 'available') = (credential_id IS NULL))
);
CREATE UNIQUE INDEX slots_one_holder_a_key ON slots (fingerprint) WHERE state <> 'available';

-- The record. Insert-only; partitioned by month; read in the order (xid, seq).
CREATE TABLE events (
    id            text NOT NULL,
    xid           xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq           bigint GENERATED ALWAYS AS IDENTITY,
    at            timestamptz NOT NULL,
    type          text NOT NULL,
    caller        text NOT NULL,
    task_id       text NOT NULL,
    agent_id      text NOT NULL,
    profile       text NOT NULL,
    provider      text NOT NULL,
    credential_id text NOT NULL,
    upstream_ids  text[] NOT NULL,
    fingerprint   bytea,
    body          text NOT NULL -- the event as canonical JSON; the columns before it repeat parts of it for searching
) PARTITION BY RANGE (at);
CREATE INDEX events_in_order ON events (xid, seq);
CREATE INDEX events_by_task ON events (task_id, xid, seq) WHERE task_id <> '';
CREATE INDEX events_by_agent ON events (agent_id, xid, seq) WHERE agent_id <> '';
CREATE INDEX events_by_credential ON events (credential_id, xid, seq) WHERE credential_id <> '';
CREATE INDEX events_by_caller ON events (caller, xid, seq);
CREATE INDEX events_by_profile ON events (profile, xid, seq) WHERE profile <> '';
CREATE INDEX events_by_provider ON events (provider, xid, seq) WHERE provider <> '';
CREATE INDEX events_by_type ON events (type, xid, seq);
CREATE INDEX events_by_upstream_id ON events USING gin (upstream_ids);
CREATE INDEX events_by_time ON events (at);

-- A month whose partition was not made in time still finds its place.
CREATE TABLE events_default PARTITION OF events DEFAULT;

-- Makes the partitions of this month and the given number of months after it. The service may call it though it may
-- not create tables; the owner's rights are lent for just this.
-- +goose StatementBegin
CREATE FUNCTION ensure_event_partitions(months_ahead int) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    first timestamptz;
    name  text;
BEGIN
    IF months_ahead NOT BETWEEN 0 AND 24 THEN
        RAISE EXCEPTION 'months_ahead is 0 to 24';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('taskpass.event_partitions'));
    FOR i IN 0 .. months_ahead LOOP
        first := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i)) AT TIME ZONE 'UTC';
        name := 'events_' || to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass('public.' || name) IS NOT NULL
            OR EXISTS (SELECT FROM events_default WHERE at >= first AND at < first + interval '1 month');
        EXECUTE format('CREATE TABLE %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
            name, first, (first AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC');
    END LOOP;
END $$;
-- +goose StatementEnd
SELECT ensure_event_partitions(3);

GRANT USAGE ON SCHEMA public TO taskpass_service;
GRANT SELECT, INSERT, UPDATE ON callers, tokens, credentials, versions, slots TO taskpass_service;
-- Not xid and seq: the order of the record is the database's own.
GRANT SELECT, INSERT (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body)
    ON events TO taskpass_service;
REVOKE ALL ON FUNCTION ensure_event_partitions(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_event_partitions(int) TO taskpass_service;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
