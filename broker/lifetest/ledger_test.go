package lifetest

import (
	"context"
	"sync/atomic"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// ledger is a replica's. It counts what the broker asks of it, which is the event for "they wait by now".
type ledger struct {
	*store.Store
	waits   atomic.Int64 // requests that began to wait for a credential to change
	intents atomic.Int64 // that were handed over to be written
}

func (l *ledger) Changes(id broker.CredentialID) (<-chan struct{}, func()) {
	changed, done := l.Store.Changes(id)
	l.waits.Add(1)
	return changed, done
}

func (l *ledger) Begin(ctx context.Context, in broker.Intent) error {
	l.intents.Add(1)
	return l.Store.Begin(ctx, in)
}

func (l *ledger) Next(ctx context.Context, c broker.Credential, key *broker.RequestKey, token *broker.NewTaskToken, e broker.Event) error {
	l.intents.Add(1)
	return l.Store.Next(ctx, c, key, token, e)
}

// more runs fn, and returns when n more were counted than before it.
func more(t tb, count *atomic.Int64, n int, fn func()) {
	t.Helper()
	want := count.Load() + int64(n)
	fn()
	eventually(t, "they wait", func() bool { return count.Load() >= want })
}
