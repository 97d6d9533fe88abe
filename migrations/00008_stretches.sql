-- Searching the record by time. Its order is (xid, seq), and `at` is a replica's clock, which runs with that order only
-- about. So it is noted, for each stretch of the order, which times are in it; nothing is assumed of any clock. This costs
-- the writers nothing, and saves them an index. What is on the record already the service notes after it starts: ten
-- million events in half a minute. Until then they are found by reading them all. The version before this one goes on
-- working, and finds events by time in that way.
--
-- An index of the record cannot go while anybody reads the record, and who waits for that holds up who writes: all issuing.
-- So this waits 3 s and gives up, with nothing done. Run it again then.

-- +goose Up

SET LOCAL lock_timeout = '3s';

-- A stretch is the events after one place of the order, up to another and with it, all of them settled: no transaction
-- that is open, or is still to come, can write there. Those of level 1 are made of those of level 0, so that few rows are
-- read however long the record is. The first of each level is empty, and ends where the record begins.
CREATE TABLE event_stretches (
    level     int NOT NULL CHECK (level IN (0, 1)),
    after_xid xid8 NOT NULL,
    after_seq bigint NOT NULL,
    xid       xid8 NOT NULL,
    seq       bigint NOT NULL,
    earliest  timestamptz NOT NULL,
    latest    timestamptz NOT NULL,
    PRIMARY KEY (level, after_xid, after_seq)
);
INSERT INTO event_stretches VALUES (0, '0', -1, '0', 0, 'infinity', '-infinity'), (1, '0', -1, '0', 0, 'infinity', '-infinity');

-- Notes up to so many stretches more of so many events each, and what they make whole of level 1, as many of them each;
-- tells how many of level 0 it noted. The service may call it though it may not write the table, so that what stands there
-- is what the database found.
-- +goose StatementBegin
CREATE FUNCTION note_event_stretches(most int, length int) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    place event_stretches; -- the last stretch
    noted bigint[] := '{}';
    rows  bigint;
BEGIN
    IF most NOT BETWEEN 1 AND 1024 OR length NOT BETWEEN 1 AND 1024 THEN
        RAISE EXCEPTION 'most and length are 1 to 1024';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('taskpass.event_stretches')) THEN
        RETURN 0; -- another replica is at it
    END IF;
    FOR l IN 0 .. 1 LOOP
        SELECT * INTO STRICT place FROM event_stretches WHERE level = l ORDER BY after_xid DESC, after_seq DESC LIMIT 1;
        WITH parts AS (
            (SELECT xid, seq, at AS earliest, at AS latest FROM events
                WHERE l = 0 AND (xid, seq) > (place.xid, place.seq) AND xid < pg_snapshot_xmin(pg_current_snapshot())
                ORDER BY xid, seq LIMIT most * length)
            UNION ALL
            (SELECT xid, seq, earliest, latest FROM event_stretches
                WHERE l = 1 AND level = 0 AND (after_xid, after_seq) >= (place.xid, place.seq)
                ORDER BY after_xid, after_seq LIMIT most * length)
        ), numbered AS (
            SELECT *, row_number() OVER (ORDER BY xid, seq) - 1 AS n FROM parts
        ), whole AS (
            SELECT n / length AS k, (array_agg(xid ORDER BY n DESC))[1] AS xid, (array_agg(seq ORDER BY n DESC))[1] AS seq,
                min(earliest) AS earliest, max(latest) AS latest
            FROM numbered GROUP BY 1 HAVING count(*) = length
        )
        INSERT INTO event_stretches
        SELECT l, lag(xid, 1, place.xid) OVER w, lag(seq, 1, place.seq) OVER w, xid, seq, earliest, latest
        FROM whole WINDOW w AS (ORDER BY k);
        GET DIAGNOSTICS rows = ROW_COUNT;
        noted := noted || rows;
    END LOOP;
    RETURN noted[1];
END $$;
-- +goose StatementEnd

DROP INDEX events_by_time; -- by which a page is not found in the order of the record

GRANT SELECT ON event_stretches TO taskpass_service, taskpass_auditor;
REVOKE ALL ON FUNCTION note_event_stretches(int, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION note_event_stretches(int, int) TO taskpass_service;

-- +goose Down
-- Migrations only go forward: what is on the record stays on it.
SELECT 'nothing to undo';
