-- A month may leave the database several times: an event that a wrong clock dates into one that is archived comes after it.
-- The version before this one goes on working, and archives each month once.

-- +goose Up

ALTER TABLE tree_archives DROP CONSTRAINT tree_archives_pkey, ADD PRIMARY KEY (month, from_idx);

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
