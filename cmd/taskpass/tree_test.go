package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/audit/publish"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// What is signed while the process stops is published too: once the queues ended beside the sequencer, and what it gave
// them last was lost.
func TestTheLastCheckpointIsPublished(t *testing.T) {
	t.Parallel()
	dir, _, service := migrated(t)
	private, _, err := tree.NewKey("taskpass.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tree.NewSigner("taskpass.example/log", private)
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(strings.TrimSpace(readFile(t, service)))})
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	if err := ledger.Record(t.Context(), broker.Event{ID: "evt_1", Type: broker.EventAuditTampered, Caller: broker.Caller{Name: "x", Role: broker.RoleOperator}}); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	queue, err := publish.New(publish.Config{To: publish.File{Path: filepath.Join(dir, "checkpoints")}, Name: "file", Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	made := &auditTree{log: sequence.NewLog(ledger.Pool(), signer.Keys()), queues: []*publish.Queue{queue}, hooks: publish.NewClient()}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	made.sequencer, err = sequence.New(sequence.Config{Pool: ledger.Pool(), Signer: signer, Logger: logger, Publish: []sequence.Publisher{queue},
		Reached: func(ctx context.Context, point string) {
			if _, err := made.log.Checkpoint(ctx); point != "after_commit" || err != nil {
				return // another test's transaction may hold it back
			}
			stop()
			for range 10_000 { // whoever ends now ends before this is published
				runtime.Gosched()
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	made.run(ctx, broker.NewRunner(nil))
	if c, err := made.log.Checkpoint(t.Context()); err != nil || queue.Done().Size != c.Size || c.Size != 1 {
		t.Errorf("signed for %d events, published for %d: %v", c.Size, queue.Done().Size, err)
	}
}
