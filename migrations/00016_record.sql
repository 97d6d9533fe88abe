-- Noting the times of events reads the record in its order. The planner's statistics end before the newest events, so it
-- expects few after the last that was noted, and would read and sort all that wait to find the first of them. These
-- settings end with each call. The version before this one goes on working.

-- +goose Up

ALTER FUNCTION note_event_stretches(int, int) SET enable_sort = off;
ALTER FUNCTION note_event_stretches(int, int) SET enable_seqscan = off;
ALTER FUNCTION note_event_stretches(int, int) SET enable_bitmapscan = off;
ALTER FUNCTION note_event_stretches(int, int) SET max_parallel_workers_per_gather = 0;
ALTER FUNCTION note_event_stretches(int, int) SET jit = off;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
