package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

type serveCmd struct {
	Config          string        `required:"" type:"path" help:"The YAML file: see docs/examples/taskpass.yaml. SIGHUP reads its profiles anew."`
	WaitForDatabase time.Duration `default:"45s" help:"How long the start waits for a PostgreSQL that is not there yet: ${default} by default. 0s: not at all."`
}

func (c *serveCmd) Run(e *env) error {
	file, err := config.Load(c.Config)
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // before anything waits: unhandled, it would end the process
	defer signal.Stop(hangup)
	logger := newLogger(e.stderr, file.Log.Level)
	warn(logger, file)
	n, err := newNode(e.ctx, file, logger, c.WaitForDatabase)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", file.Listen)
	if err != nil {
		n.close()
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		n.runner.Loop(ctx, "reload", func(ctx context.Context) { c.watch(ctx, n, hangup) })
	}()
	defer func() { cancel(); <-watched }()
	return n.serve(ctx, listener)
}

func warn(logger *slog.Logger, file *config.File) {
	for _, w := range file.Warnings() {
		logger.Warn("the configuration may not do what is expected", "warning", w.String())
	}
}

// watch reloads on each SIGHUP. A file with a fault changes nothing.
func (c *serveCmd) watch(ctx context.Context, n *node, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		file, err := config.Load(c.Config)
		if err == nil {
			warn(n.logger, file)
			err = n.reload(ctx, file)
		}
		if err != nil {
			n.logger.Error("not reloaded: the profiles are as before", "error", err)
			continue
		}
		n.logger.Info("reloaded", "profiles", len(file.Profiles))
	}
}

// tlsConfig reads the certificate, and the authority of the clients' if they must have one.
func tlsConfig(t *config.TLS) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if t.ClientCAFile == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(t.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("tls.client_ca_file: %w", err)
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("tls.client_ca_file: holds no certificate")
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}
