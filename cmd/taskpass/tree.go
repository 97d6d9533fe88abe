package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/taskpass/taskpass/audit/publish"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/metrics"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/providers/awsclient"
)

// auditTree is what keeps the record's tree in this process.
type auditTree struct {
	log       *sequence.Log
	sequencer *sequence.Sequencer
	queues    []*publish.Queue
	hooks     *http.Client
	buckets   []awsclient.Client
}

// newTree opens what the configuration's audit section names; nil without one. The broker is asked for only later, when
// there is an alarm to record.
func (n *node) newTree(ctx context.Context) (*auditTree, error) {
	cfg := n.file.Audit
	if cfg == nil {
		n.logger.Warn("the audit record is not tamper-evident: the configuration has no audit.key")
		return nil, nil //nolint:nilnil // without the section there is no tree, and that is no error
	}
	var private []broker.Secret
	for _, ref := range append([]broker.Ref{cfg.Key}, cfg.OldKeys...) {
		key, err := ref.Resolve()
		if err != nil {
			return nil, fmt.Errorf("audit.key: %w", err)
		}
		private = append(private, key)
	}
	signer, err := tree.NewSigner(cfg.Name, private...)
	if err != nil {
		return nil, fmt.Errorf("audit.key: %w", err)
	}
	t := &auditTree{log: sequence.NewLog(n.store.Reading().Pool(), signer.Keys()), hooks: publish.NewClient()}
	var places []sequence.Reader
	var publishers []sequence.Publisher
	for i, p := range cfg.Publish {
		q, err := t.destination(ctx, p, i, signer, n)
		if err != nil {
			return nil, fmt.Errorf("audit.publish[%d]: %w", i, err)
		}
		t.queues, publishers = append(t.queues, q), append(publishers, q)
		if from, ok := q.To.(sequence.Reader); ok && (p.ReadBack == nil || *p.ReadBack) {
			places = append(places, from)
		}
	}
	if len(publishers) == 0 {
		n.logger.Warn("checkpoints are not published anywhere: whoever owns the database can rewrite the audit record")
	}
	t.sequencer, err = sequence.New(sequence.Config{
		Pool: n.store.Pool(), Signer: signer, Logger: n.logger, Publish: publishers, ReadBack: places, Reached: reachedInTree, Clock: n.store.Now,
		Alarm: func(ctx context.Context, reason string) error { return n.broker.AuditTampered(ctx, reason) },
	})
	return t, err
}

// destination opens one place to publish to.
func (t *auditTree) destination(ctx context.Context, p config.Publish, i int, signer *tree.Signer, n *node) (*publish.Queue, error) {
	cfg := publish.Config{Logger: n.logger, Every: p.Every}
	switch {
	case p.File != "":
		file := publish.File{Path: p.File}
		// A file that is somebody else's is a mistake in the configuration: it is found before anything is served.
		if _, err := file.Newest(ctx, signer.Keys()); err != nil {
			return nil, err
		}
		if cfg.Every == 0 {
			cfg.Every = 10 * time.Second // a file grows by some 200 bytes for each
		}
		cfg.To, cfg.Name = file, fmt.Sprintf("%d:file", i)
	case p.HTTP != "":
		hook := publish.HTTP{URL: p.HTTP, Client: t.hooks}
		if p.Authorization != "" {
			var err error
			if hook.Authorization, err = p.Authorization.Resolve(); err != nil {
				return nil, err
			}
		}
		cfg.To, cfg.Name = hook, fmt.Sprintf("%d:http", i)
	default:
		client, err := awsclient.Load(ctx, p.AWS())
		if err != nil {
			return nil, err
		}
		if client.Region == "" {
			return nil, errors.New("region: is required, for this machine's AWS configuration names none")
		}
		bucket, err := publish.OpenS3(p.S3, client.Config)
		if err != nil {
			return nil, err
		}
		t.buckets = append(t.buckets, client)
		if cfg.Every == 0 {
			cfg.Every = time.Minute
		}
		cfg.To, cfg.Name = bucket, fmt.Sprintf("%d:s3", i)
	}
	return publish.New(cfg)
}

// run works until ctx ends, and returns when everything has stopped: the sequencer first, for what it signs last is to be
// published too.
func (t *auditTree) run(ctx context.Context, runner *broker.Runner) {
	queues, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	for _, q := range t.queues {
		wg.Go(func() { runner.Loop(queues, "publish", q.Run) })
	}
	runner.Loop(ctx, "sequencer", t.sequencer.Run)
	stop()
	wg.Wait()
	t.hooks.CloseIdleConnections()
	for _, b := range t.buckets {
		b.Close()
	}
}

// state is for the metrics.
func (t *auditTree) state(ctx context.Context) (s metrics.TreeState, err error) {
	s.Refused = t.sequencer.Refused() != ""
	s.Published = map[string]int64{}
	for _, q := range t.queues {
		s.Published[q.Name] = q.Done().Size
	}
	if s.LagEvents, s.Lag, err = t.log.Lag(ctx); err != nil {
		return s, err
	}
	if s.Unsettled, err = t.log.Unsettled(ctx); err != nil {
		return s, err
	}
	c, err := t.log.Checkpoint(ctx)
	if e, ok := errors.AsType[*broker.Error](err); ok && e.Code == broker.CodeNotFound {
		return s, nil
	}
	s.Size, s.CheckpointAge = c.Size, time.Since(c.At)
	return s, err
}
