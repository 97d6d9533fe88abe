package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/openapi/client"
)

// proof shows that the record is proven by what was published, and that an owner of the database who alters it is found.
func (s *story) proof(ctx context.Context) error {
	s.chapter("The auditor verifies the record; then somebody alters a row behind the broker's back")
	var events int64
	conn, err := postgres.Connect(ctx, postgres.Config{URL: broker.NewSecret(s.stack.AdminURL)})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM events").Scan(&events); err != nil {
		return err
	}
	published, err := s.awaitCheckpoint(ctx, events)
	if err != nil {
		return err
	}
	newest := published[len(published)-1]
	s.say("a signed checkpoint of %d events is outside the database, in a file", newest.Size)
	report, err := s.stack.node.tree.log.Verify(ctx, published)
	if err != nil {
		return err
	}
	if f, bad := report.First(); bad || !report.OK() {
		return fmt.Errorf("the record does not verify: %s", f)
	}
	s.say("verify: %d events, each as it was signed", report.Events)

	var id string
	err = conn.QueryRow(ctx, `UPDATE events SET agent_id = 'agent-99', body = replace(body, '"agent-17"', '"agent-99"')
		WHERE (xid, seq) = (SELECT xid, seq FROM events WHERE type = 'credential.issued' ORDER BY xid, seq LIMIT 1) RETURNING id`).Scan(&id)
	if err != nil {
		return err
	}
	s.say("as superuser: UPDATE events SET … 'agent-99' … WHERE id = '%s'", id)
	report, err = s.stack.node.tree.log.Verify(ctx, published)
	if err != nil {
		return err
	}
	first, bad := report.First()
	if !bad || first.What != tree.Altered || first.EventID != id {
		return errors.New("the altered event was not found")
	}
	s.say("verify: %s", first)
	return s.noProof(ctx, id)
}

// noProof shows that the API proves nothing that was altered.
func (s *story) noProof(ctx context.Context, id string) error {
	api, err := s.client("auditor")
	if err != nil {
		return err
	}
	answer, err := api.ProveAuditInclusionWithResponse(ctx, &client.ProveAuditInclusionParams{EventID: &id})
	if err != nil {
		return err
	}
	problem, ok := errors.AsType[*problemError](asProblem(answer.StatusCode(), answer.Body))
	if !ok || problem.Code != string(broker.CodeRecordTampered) {
		return errors.New("an altered event was proven")
	}
	s.say("a proof of it over the API: %d %s", problem.Status, problem.Code)
	return nil
}

// awaitCheckpoint waits until so many events are signed and published.
func (s *story) awaitCheckpoint(ctx context.Context, events int64) ([]tree.Checkpoint, error) {
	keys, err := s.stack.auditKeys()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(filepath.Join(s.stack.dataDir, "checkpoints"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if found, _ := keys.OpenAll(text); len(found) > 0 && found[len(found)-1].Size >= events {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no checkpoint of %d events: %w", events, ctx.Err())
		case <-tick.C:
		}
	}
}
