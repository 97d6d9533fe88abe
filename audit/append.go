package audit

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
)

// The events of a group are one statement. upstream_ids travel as one text a row, for PostgreSQL's arrays of arrays
// must be rectangular; the unit separator stands in no upstream's name.
const insertEvents = `INSERT INTO events
	(id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body)
SELECT id, at, type, caller, task_id, agent_id, profile, provider, credential_id,
	string_to_array(upstream_ids, E'\x1f'), fingerprint, body
FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
	$9::text[], $10::text[], $11::bytea[], $12::text[])
	AS e (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body)`

const separator = "\x1f"

// Append queues the events' insertion. The caller sends the batch in the transaction of the state change that the
// events tell of (P4). No events queue nothing.
func Append(batch *pgx.Batch, events []broker.Event) error {
	if len(events) == 0 {
		return nil
	}
	var (
		n                                                = len(events)
		ids, types, callers, tasks, agents               = text(n), text(n), text(n), text(n), text(n)
		profiles, providers, credentials, upstream, body = text(n), text(n), text(n), text(n), text(n)
		at                                               = make([]time.Time, n)
		fingerprints                                     = make([][]byte, n)
	)
	for i, e := range events {
		canonical, err := Canonical(e)
		if err != nil {
			return fmt.Errorf("encoding an audit event: %w", err)
		}
		ids[i], at[i], types[i], callers[i] = e.ID, e.At, string(e.Type), e.Caller.Name
		tasks[i], agents[i], profiles[i], providers[i] = e.TaskID, e.AgentID, e.Profile, e.Provider
		credentials[i], upstream[i] = string(e.Credential), joinIDs(e)
		fingerprints[i], body[i] = e.Fingerprint, string(canonical)
	}
	batch.Queue(insertEvents, ids, at, types, callers, tasks, agents, profiles, providers, credentials, upstream,
		fingerprints, body)
	return nil
}

func text(n int) []string { return make([]string, n) }

// joinIDs is all by which an upstream's log may know the version: its upstream ids and our own short id.
func joinIDs(e broker.Event) string {
	joined := string(e.VersionID)
	for _, id := range e.UpstreamIDs {
		if joined != "" {
			joined += separator
		}
		joined += id
	}
	return joined
}
