package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/metrics"
	"github.com/taskpass/taskpass/broker/policy"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/migrations"
	"github.com/taskpass/taskpass/openapi"
	"github.com/taskpass/taskpass/providers"
)

const (
	// partitionsEvery is how often the audit record's partitions are looked after; they are made months ahead.
	partitionsEvery = 6 * time.Hour
	// notesEvery is how often the record's times are noted. A search by time reads all events that came after.
	notesEvery = 5 * time.Second
)

// node is one broker process: everything that `serve` and `dev` run. Any number of them share one database.
type node struct {
	file    *config.File
	logger  *slog.Logger
	runner  *broker.Runner
	store   *store.Store
	sealer  broker.Sealer
	broker  *broker.Broker
	callers *auth.Authenticator
	server  *http.Server
	record  *audit.Log          // on the connections of issuing: for what the broker itself writes
	limits  *broker.Concurrency // of the API and the console
	tree    *auditTree          // nil: nothing is signed
	schema  int64

	stopping context.Context // done when it begins to stop
	stop     context.CancelFunc
}

// newNode opens everything and checks the database, for which it waits so long; it does not serve yet.
func newNode(ctx context.Context, file *config.File, logger *slog.Logger, wait time.Duration) (n *node, err error) {
	url, err := file.Database.URL.Resolve()
	if err != nil {
		return nil, fmt.Errorf("database.url: %w", err)
	}
	keyset, err := file.Seal.Keyset.Resolve()
	if err != nil {
		return nil, fmt.Errorf("seal.keyset: %w", err)
	}
	sealer, err := seal.New(keyset)
	if err != nil {
		return nil, err
	}
	n = &node{file: file, logger: logger, runner: broker.NewRunner(logger), sealer: sealer}
	n.stopping, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	if n.schema, err = migrations.Latest(); err != nil {
		return nil, err
	}
	n.store, err = store.Open(ctx, store.Config{
		URL: url, From: "database.url (" + string(file.Database.URL) + ")", Logger: logger, Runner: n.runner,
		MaxConns: int32(file.Database.MaxConnections), ReadConns: int32(file.Database.ReadConnections), //nolint:gosec // checked: at most 1000
	})
	if err != nil {
		return nil, err
	}
	opened := n.store // n itself is nil where an error is returned
	defer func() {
		if err != nil {
			opened.Close()
		}
	}()
	if err := n.awaitDatabase(ctx, wait); err != nil {
		return nil, err
	}
	if err := n.store.MeasureClock(ctx); err != nil {
		return nil, fmt.Errorf("reading the database's clock: %w", err)
	}
	profiles, err := file.Open(ctx, n.deps())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = profiles.Close() // on the way out
		}
	}()
	watch := metrics.New(n.store.Reading())
	watch.WatchClock(n.store.ClockDifference)
	watch.WatchRunner(n.runner)
	n.broker, err = broker.New(broker.Config{
		Ledger: n.store, Lists: n.store.Reading(), Sealer: sealer, Policy: policy.Policy{}, Profiles: profiles,
		Limits: file.Limits.Broker(), Observer: watch, Logger: logger, Runner: n.runner,
		UpstreamTimeout: file.UpstreamTimeout, Reached: reached, Clock: n.store.Now,
	})
	if err != nil {
		return nil, err
	}
	watch.WatchPools(n.broker.UnusableKeys)
	n.callers = auth.New(n.store, n.store.Now)
	n.record = audit.NewLog(n.store.Pool())
	n.limits = broker.NewConcurrency(file.Concurrency.Broker())
	watch.WatchConcurrency(n.limits)
	auditors := audit.NewLog(n.store.Reading().Pool())
	surface := openapi.Config{
		Broker: n.broker, Audit: auditors, Limits: n.limits, Callers: n.callers, Logger: logger, Stopping: n.stopping,
		Ready:   n.ready,
		Metrics: watch.Handler(), Requests: watch.Request, ClockDifference: n.store.ClockDifference,
	}
	if n.tree, err = n.newTree(ctx); err != nil {
		return nil, err
	}
	if n.tree != nil {
		surface.Tree = n.tree.log
		watch.WatchTree(n.tree.state)
	}
	if surface.Console, err = n.newConsole(auditors, sealer); err != nil {
		return nil, err
	}
	handler, err := openapi.New(surface)
	if err != nil {
		return nil, err
	}
	n.server = &http.Server{
		Handler: handler, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 90 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	return n, n.broker.ConfigLoaded(ctx, file.Fingerprint())
}

// close closes what newNode and the reloads after it opened.
func (n *node) close() {
	if err := n.broker.Close(); err != nil {
		n.logger.Warn("a provider could not be closed", "error", err)
	}
	n.store.Close()
}

func (n *node) deps() providers.Deps {
	return providers.Deps{
		Slots: n.store, Sealer: n.sealer, Denials: n.store, Accounts: n.store,
		Handed: broker.Safe{Sealed: n.store, Sealer: n.sealer}, Clock: n.store.Now, Logger: n.logger,
	}
}

// serve answers on the listener and does due work until ctx ends; then it finishes what it began, within the
// configuration's shutdown_timeout, and closes everything.
func (n *node) serve(ctx context.Context, listener net.Listener) error {
	defer n.close()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	patient := postgres.Patient(background)
	loop := func(ctx context.Context, name string, run func(context.Context)) {
		work.Go(func() { n.runner.Loop(ctx, name, run) })
	}
	loop(background, "clock", n.store.FollowClock)
	loop(background, "sweeper", n.broker.Run)
	loop(patient, "partitions", n.keepPartitions)
	loop(patient, "time index", n.noteTimes)
	if n.tree != nil {
		work.Go(func() { n.tree.run(patient, n.runner) })
	}
	defer func() { stop(); work.Wait() }()

	if err := n.listenTLS(&listener); err != nil {
		_ = listener.Close()
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- n.server.Serve(listener) }()
	n.logger.Info("serving", "address", listener.Addr().String(), "profiles", len(n.file.Profiles))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	n.stop()
	n.logger.Info("stopping: finishing what was begun", "within", n.file.ShutdownTimeout.String())
	grace, cancel := context.WithTimeout(background, n.file.ShutdownTimeout)
	defer cancel()
	if err := n.server.Shutdown(grace); err != nil {
		return fmt.Errorf("some requests were cut off: %w", err)
	}
	return nil
}

func (n *node) listenTLS(listener *net.Listener) error {
	if n.file.TLS == nil {
		return nil
	}
	cfg, err := tlsConfig(n.file.TLS)
	if err == nil {
		*listener = tls.NewListener(*listener, cfg)
	}
	return err
}

func (n *node) keepPartitions(ctx context.Context) {
	tick := time.NewTicker(partitionsEvery)
	defer tick.Stop()
	for {
		if err := n.store.EnsurePartitions(ctx); err != nil && ctx.Err() == nil {
			n.logger.Error("the audit record's partitions could not be looked after", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// noteTimes keeps searches of the record by time quick.
func (n *node) noteTimes(ctx context.Context) {
	tick := time.NewTicker(notesEvery)
	defer tick.Stop()
	for {
		more, err := n.record.Note(ctx)
		if err != nil && ctx.Err() == nil {
			n.logger.Error("the times of the audit record could not be noted: searches by time get slow", "error", err)
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reload puts the profiles and limits of a new file into force, all or none. What the process was started with (addresses, the
// database, TLS) stays as it is.
func (n *node) reload(ctx context.Context, file *config.File) error {
	profiles, err := file.Open(ctx, n.deps())
	if err != nil {
		return err
	}
	if err := n.broker.SetProfiles(profiles); err != nil {
		return errors.Join(err, profiles.Close())
	}
	n.broker.SetLimits(file.Limits.Broker())
	n.limits.Set(file.Concurrency.Broker())
	if err := n.broker.ConfigLoaded(ctx, file.Fingerprint()); err != nil {
		return errors.Join(errors.New("the new profiles are in force, but that is not on the audit record"), err)
	}
	return nil
}
