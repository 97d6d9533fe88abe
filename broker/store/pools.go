package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/broker/store/db"
)

// readTimeout bounds one statement of a list or a search in the database. One page of either reads a bounded number of
// rows, so it takes far less unless the database is overloaded.
const readTimeout = 10 * time.Second

// pools are connections apart from those that issuing needs, so that whoever reads cannot take them all.
type pools struct {
	reads *pgxpool.Pool // lists and searches
	watch *pgxpool.Pool // one connection, for all watches of this process
}

// openSeparate makes the pools for the same database. They connect when they are first used.
func openSeparate(ctx context.Context, cfg Config) (p pools, err error) {
	reads := postgres.Config{
		URL: cfg.URL, From: cfg.From, Name: "taskpass reads", MaxConns: cfg.ReadConns, Statement: readTimeout,
	}
	if p.reads, err = postgres.Open(ctx, reads); err != nil {
		return p, err
	}
	watch := postgres.Config{URL: cfg.URL, From: cfg.From, Name: "taskpass watch", MaxConns: 1}
	if p.watch, err = postgres.Open(ctx, watch); err != nil {
		p.reads.Close()
		return p, err
	}
	return p, nil
}

func (p pools) close() {
	p.reads.Close()
	p.watch.Close()
}

// Reading is the same ledger, read over the connections for lists and searches. Whatever does not change anything and may
// be asked by many at once goes through it. It ends with s; do not close it.
func (s *Store) Reading() *Store {
	view := *s
	view.pool, view.q = s.separate.reads, db.New(s.separate.reads)
	return &view
}

// CredentialsByID implements broker.Versions.
func (s *Store) CredentialsByID(ctx context.Context, ids []broker.CredentialID) ([]broker.Credential, error) {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = string(id)
	}
	rows, err := s.separate.watch.Query(ctx, "SELECT "+credentialColumns+", "+versionColumns+" FROM "+eachSpokenOf+" WHERE c.id = ANY ($1)", list)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanCredential)
}
