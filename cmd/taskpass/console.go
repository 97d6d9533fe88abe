package main

import (
	"net/http"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/console"
	"github.com/taskpass/taskpass/broker"
)

// newConsole makes the auditor's pages out of what the node has opened.
func (n *node) newConsole(record *audit.Log, sealer broker.Sealer) (http.Handler, error) {
	ledger := n.store.Reading()
	cfg := console.Config{
		Record: record, Ledger: ledger, Tasks: ledger, Counts: ledger, Callers: n.callers, Recorder: n.broker,
		Sealer: sealer, Limits: n.limits, Logger: n.logger, Stopping: n.stopping, Clock: n.store.Now,
	}
	if n.tree != nil {
		cfg.Tree, cfg.Refused = n.tree.log, n.tree.sequencer.Refused
	}
	return console.New(cfg)
}
