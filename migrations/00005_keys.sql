-- Keys of pools in full: values that operators hand in, several holders where a pool allows it, rest between holders,
-- quarantine, retirement, and rotations that move holders. Everything is an addition, or keeps what the version before
-- this one relies on, so it may go on serving.

-- +goose Up

-- A holder has a seat at a key. Most keys have one.
ALTER TABLE slots
    ADD COLUMN seat int NOT NULL DEFAULT 1 CHECK (seat > 0),
    ADD COLUMN rest_until timestamptz, -- of a resting seat; NULL: until the key's value has changed
    DROP CONSTRAINT slots_pkey,
    ADD CONSTRAINT slots_pkey PRIMARY KEY (pool, name, seat),
    DROP CONSTRAINT slots_state_check,
    ADD CONSTRAINT slots_state_check CHECK (state IN ('available', 'held', 'quarantined', 'resting')),
    DROP CONSTRAINT slots_held_by_one,
    ADD CONSTRAINT slots_held_by_one CHECK ((state IN ('available', 'resting')) = (credential_id IS NULL)),
    ADD CONSTRAINT slots_rest_has_value CHECK (state <> 'resting' OR fingerprint IS NOT NULL);
DROP INDEX slots_one_holder_a_key;
CREATE UNIQUE INDEX slots_one_holder_a_key ON slots (fingerprint, seat) WHERE state IN ('held', 'quarantined');

-- What is known of a key beside who holds it. A row is made when it is first needed.
CREATE TABLE keys (
    pool        text NOT NULL,
    name        text NOT NULL,
    state       text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'quarantined', 'retired')),
    why         text NOT NULL DEFAULT '',
    -- The fingerprint of the value that is in quarantine: another one is not; empty: the next that is seen. It outlives the
    -- quarantine, for an aborted rotation brings the value back.
    refused     bytea,
    strikes     int NOT NULL DEFAULT 0 CHECK (strikes >= 0), -- refusals in a row that holders reported of one value
    struck      bytea,          -- the fingerprint of that value
    fingerprint bytea,          -- of the present value, when it was last looked at
    changed_at  timestamptz,
    -- Of a key that an operator handed in; a key by reference is in the configuration.
    value_id    text UNIQUE,    -- names the sealed value, and is its associated data
    sealed      bytea,
    vendor_id   text NOT NULL DEFAULT '', -- by what the vendor knows the value
    scopes      text[] NOT NULL DEFAULT '{}',
    labels      jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (pool, name),
    CONSTRAINT keys_sealed_whole CHECK ((value_id IS NULL) = (sealed IS NULL) OR state = 'retired'),
    CONSTRAINT keys_retired_is_wiped CHECK (state <> 'retired' OR sealed IS NULL),
    CONSTRAINT keys_quarantined_value CHECK (state <> 'quarantined' OR refused IS NOT NULL)
);

-- A change of a key's value, until every holder has the new one.
CREATE TABLE rotations (
    id               text PRIMARY KEY,
    pool             text NOT NULL,
    name             text NOT NULL,
    old_fingerprint  bytea NOT NULL,
    new_fingerprint  bytea NOT NULL,
    old_value_id     text,  -- of a sealed value, for the way back; wiped at the end
    old_sealed       bytea,
    old_vendor_id    text NOT NULL DEFAULT '',
    started_at       timestamptz NOT NULL,
    deadline         timestamptz NOT NULL,
    ended_at         timestamptz,
    outcome          text NOT NULL DEFAULT '' CHECK (outcome IN ('', 'moved', 'deadline', 'aborted', 'overtaken')),
    retired_at       timestamptz, -- when the vendor refused the old value, where it can be told to
    CONSTRAINT rotations_ended_has_outcome CHECK ((ended_at IS NULL) = (outcome = '')),
    CONSTRAINT rotations_ended_is_wiped CHECK (ended_at IS NULL OR old_sealed IS NULL)
);
CREATE UNIQUE INDEX rotations_one_at_a_time ON rotations (pool, name) WHERE ended_at IS NULL;
CREATE INDEX rotations_by_key ON rotations (pool, name, started_at DESC);

ALTER TABLE versions
    ADD COLUMN succeed boolean NOT NULL DEFAULT false,  -- its successor is to be minted, though nobody asked: its key is being rotated
    ADD COLUMN ungiven boolean NOT NULL DEFAULT false;  -- minted though nobody asked, and not yet resolved by its holder
ALTER TABLE credentials
    ADD COLUMN strikes int NOT NULL DEFAULT 0 CHECK (strikes >= 0), -- refusals in a row that its holder reported, one a version
    ADD COLUMN struck int NOT NULL DEFAULT 0; -- the version that was counted last

GRANT SELECT, INSERT, UPDATE ON keys, rotations TO taskpass_service;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
