-- What providers keep upstream in step with the ledger, whoever asks or not: deny policies, resting accounts. Everything
-- is an addition, so the version before this one may go on serving.

-- +goose Up

CREATE TABLE upkeep (
    upstream text PRIMARY KEY,
    due_at   timestamptz NOT NULL,              -- look at it by then
    state    jsonb,                             -- the provider's own notes; never a secret
    used     bigint NOT NULL DEFAULT 0,         -- how full what it keeps is, in its own unit
    room     bigint NOT NULL DEFAULT 0,         -- how much fits; 0: no bound is known
    CHECK (used >= 0 AND room >= 0)
);
GRANT SELECT, INSERT, UPDATE ON upkeep TO taskpass_service;

-- A cut-off ends all versions of an upstream that are active.
CREATE INDEX versions_active_at ON versions (upstream) WHERE state = 'active';

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
