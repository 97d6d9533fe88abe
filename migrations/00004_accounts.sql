-- Service accounts that tasks hold one at a time, and that rest before they change hands: re-enabling one revives every
-- token that was made for it. Everything is an addition, so the version before this one may go on serving.

-- +goose Up

CREATE TABLE accounts (
    email           text PRIMARY KEY, -- one row an account, so one holder an account
    state           text NOT NULL CHECK (state IN ('available', 'held', 'resting', 'waking')),
    credential_id   text UNIQUE REFERENCES credentials (id), -- the holder: its versions share the account
    version_id      text,        -- the version that took it
    last_credential text,        -- who held it before
    last_used_at    timestamptz,
    alive_until     timestamptz, -- nothing that was made for it works later than this; waking: nobody else tries before this
    stopped_at      timestamptz, -- when the upstream confirmed that it is disabled, since it rests
    awake_at        timestamptz, -- when it was enabled
    found           text NOT NULL DEFAULT '', -- what was last reported about it
    CONSTRAINT accounts_held_by_one CHECK ((state = 'held') = (credential_id IS NOT NULL)),
    CONSTRAINT accounts_rest_ends CHECK (state = 'available' OR alive_until IS NOT NULL)
);
CREATE INDEX accounts_by_last_credential ON accounts (last_credential) WHERE last_credential IS NOT NULL;
GRANT SELECT, INSERT, UPDATE ON accounts TO taskpass_service;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
