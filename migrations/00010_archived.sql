-- Finding versions by their names after their events are archived: the ledger keeps all. What is alive is not in these
-- indexes, so that to issue and to refresh costs nothing more; an end costs an entry for each name. The ledger is written to
-- while they are built, which takes a minute for 1.7 million versions. The version before this one goes on working.

-- +goose NO TRANSACTION
-- +goose Up

-- What a run left that was cut off.
DROP INDEX CONCURRENTLY IF EXISTS versions_ended_by_name;
DROP INDEX CONCURRENTLY IF EXISTS versions_ended_by_fingerprint;

CREATE INDEX CONCURRENTLY versions_ended_by_name ON versions USING gin (upstream_ids) WITH (fastupdate = off) WHERE ended_at IS NOT NULL;
CREATE INDEX CONCURRENTLY versions_ended_by_fingerprint ON versions (fingerprint) WHERE ended_at IS NOT NULL;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
