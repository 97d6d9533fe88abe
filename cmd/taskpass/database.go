package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
)

const (
	askEvery  = time.Second     // whether PostgreSQL has come up
	tellEvery = 5 * time.Second // that it has not
)

// awaitDatabase waits for a PostgreSQL that is not there yet: the machine's name, the listener, the end of its start, or of
// a failover (it takes no writes). It takes limit at most. What waiting does not mend, such as a wrong password, a server
// without TLS or a missing schema, ends it at once.
func (n *node) awaitDatabase(ctx context.Context, limit time.Duration) error {
	up := time.NewTimer(limit)
	defer up.Stop()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	var told time.Time
	for {
		err := postgres.Safe(n.store.Check(ctx, n.schema))
		if err == nil || !postgres.Starting(err) {
			return err
		}
		if limit > 0 && time.Since(told) >= tellEvery {
			told = time.Now()
			n.logger.Warn("waiting for PostgreSQL", "for_at_most", limit.String(), "reason", postgres.Reason(err))
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-up.C:
			return fmt.Errorf("PostgreSQL was not there within %s (--wait-for-database): %w", limit, err)
		case <-tick.C:
		}
	}
}

// ready tells why the service should get no traffic. The reason may be shown: it has no word of a driver or a server.
func (n *node) ready(ctx context.Context) error {
	err := n.store.Check(ctx, n.schema)
	if err == nil {
		return nil
	}
	return broker.Errorf(broker.CodeUnavailable, "not ready to serve: %s", postgres.Reason(err)).Because(err)
}
