-- Searching the record at ten million events: by fingerprint, and by any name that an upstream's log has for a version,
-- in the record's order however many events bear the name. While this runs nothing is written to the record: on a large
-- one it takes minutes. The version before this one goes on working, and looks upstream names up slowly.

-- +goose Up

CREATE INDEX events_by_fingerprint ON events (fingerprint, xid, seq) WHERE fingerprint IS NOT NULL;

-- A name that many versions had, such as a pool's key, is found by its latest events without reading all of them, which
-- an inverted index cannot do. No provider has given more than three names to a version.
CREATE INDEX events_by_name_1 ON events ((upstream_ids[1]), xid, seq) WHERE upstream_ids[1] IS NOT NULL;
CREATE INDEX events_by_name_2 ON events ((upstream_ids[2]), xid, seq) WHERE upstream_ids[2] IS NOT NULL;
CREATE INDEX events_by_name_3 ON events ((upstream_ids[3]), xid, seq) WHERE upstream_ids[3] IS NOT NULL;
CREATE INDEX events_by_more_names ON events USING gin (upstream_ids) WITH (fastupdate = off) WHERE cardinality(upstream_ids) > 3;
DROP INDEX events_by_upstream_id;

ALTER TABLE credentials ADD COLUMN parent_task_id text NOT NULL DEFAULT ''; -- each event of it bears it

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
