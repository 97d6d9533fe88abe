package postgres

import (
	"context"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

const errNoTLS = Fault("the server offers no TLS, and the URL requires it (sslmode)")

// requiresTLS tells whether no attempt to connect is made without TLS.
func requiresTLS(cc *pgconn.Config) bool {
	return cc.TLSConfig != nil && !slices.ContainsFunc(cc.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.TLSConfig == nil })
}

// noticingNoTLS gives errNoTLS for a server that refuses TLS: pgx's error for it is only a text.
func noticingNoTLS(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &noticing{Conn: c}, nil
	}
}

// noticing looks at the first read alone. The answer to an SSLRequest is one byte and is read as such; any other first read
// has room for more. Like every net.Conn of pgx it has one reader at a time.
type noticing struct {
	net.Conn
	asked bool
}

// Read implements net.Conn.
func (c *noticing) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.asked && n > 0 {
		c.asked = true
		if len(p) == 1 && p[0] == 'N' {
			return 0, errNoTLS // with a byte read, pgx would not look at the error
		}
	}
	return n, err
}
