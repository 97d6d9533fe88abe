-- The record's Merkle tree: RFC 6962 hashing, in the order (xid, seq) of the events. Insert-only, like the events: the
-- service adds leaves, tiles and checkpoints, and can neither alter nor delete one. Everything is an addition, so the
-- version before this one may go on serving.

-- +goose Up

-- Which event is which leaf. It stays when the event's partition is archived.
CREATE TABLE tree_leaves (
    idx      bigint PRIMARY KEY CHECK (idx >= 0),
    event_id text NOT NULL, -- not unique: whoever may insert events could stop the tree with a second one of the same id
    xid      xid8 NOT NULL,
    seq      bigint NOT NULL,
    at       timestamptz NOT NULL,
    hash     bytea NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE INDEX tree_leaves_by_event ON tree_leaves (event_id);

-- Whole tiles of 256 hashes each. Those that are not yet whole are come to from the leaves, or from the roots one level
-- below, so that nothing here is ever written twice.
CREATE TABLE tree_tiles (
    level int NOT NULL CHECK (level BETWEEN 0 AND 7),
    n     bigint NOT NULL CHECK (n >= 0),
    data  bytea NOT NULL CHECK (octet_length(data) = 256 * 32),
    root  bytea NOT NULL CHECK (octet_length(root) = 32),
    PRIMARY KEY (level, n)
);

CREATE TABLE tree_checkpoints (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    size bigint NOT NULL CHECK (size > 0),
    at   timestamptz NOT NULL,
    note text NOT NULL
);
CREATE INDEX tree_checkpoints_by_size ON tree_checkpoints (size, id);

-- Which months were exported, verified and detached, by the owner.
CREATE TABLE tree_archives (
    month      text PRIMARY KEY CHECK (month ~ '^\d{4}-\d{2}$'),
    from_idx   bigint NOT NULL,
    to_idx     bigint NOT NULL CHECK (to_idx > from_idx),
    events     bigint NOT NULL,
    size       bigint NOT NULL, -- of the checkpoint that it was verified against
    sha256     bytea NOT NULL CHECK (octet_length(sha256) = 32), -- of the file
    at         timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT ON tree_leaves, tree_tiles TO taskpass_service;
GRANT SELECT, INSERT (size, at, note) ON tree_checkpoints TO taskpass_service;
GRANT SELECT ON tree_archives TO taskpass_service;

-- Who verifies reads the record, and nothing of what is alive.
GRANT USAGE ON SCHEMA public TO taskpass_auditor;
GRANT SELECT ON events, tree_leaves, tree_tiles, tree_checkpoints, tree_archives TO taskpass_auditor;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
