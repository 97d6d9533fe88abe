package pool_test

import (
	"bytes"
	"context"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// proxy stands between a store and PostgreSQL, and breaks the wire when told.
type proxy struct {
	url     string
	network string // PostgreSQL's own address
	address string

	mu      sync.Mutex
	losing  bool
	hanging bool
	met     chan struct{} // closed when it has happened
	hung    []net.Conn
	conns   map[net.Conn]struct{}
	wg      sync.WaitGroup
}

func newProxy(t testing.TB, at string) *proxy {
	t.Helper()
	cfg, err := pgconn.ParseConfig(at)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{conns: map[net.Conn]struct{}{}}
	p.network, p.address = pgconn.NetworkAddress(cfg.Host, cfg.Port)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password), Host: l.Addr().String(), Path: "/" + cfg.Database, RawQuery: "sslmode=disable"}
	p.url = u.String()
	p.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

// loseReply keeps the answer to the next change of a row back, and closes its connection.
func (p *proxy) loseReply() (met <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.losing, p.met = true, make(chan struct{})
	return p.met
}

// hang swallows the next query, and all that follows on its connection, until the client asks to cancel it.
func (p *proxy) hang() (met <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hanging, p.met = true, make(chan struct{})
	return p.met
}

func (p *proxy) serve(client net.Conn) {
	server, err := (&net.Dialer{}).DialContext(context.Background(), p.network, p.address)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, client, p.keepsRequest) })
	both.Go(func() { p.copy(client, server, p.keepsReply) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

// verdict is what becomes of some bytes and of what follows them.
type verdict int

const (
	pass verdict = iota
	swallow
	cut
)

func (p *proxy) copy(to, from net.Conn, judge func([]byte) verdict) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
	}()
	buffer, silent := make([]byte, 64<<10), false
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		switch judge(buffer[:n]) {
		case cut:
			return
		case swallow:
			silent = true
			p.mu.Lock()
			p.hung = append(p.hung, from)
			close(p.met)
			p.mu.Unlock()
		case pass:
		}
		if silent {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// keepsReply looks for the tag by which PostgreSQL says that it changed a row. It is sent after the commit.
func (p *proxy) keepsReply(b []byte) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.losing || !bytes.Contains(b, []byte("UPDATE 1\x00")) {
		return pass
	}
	p.losing = false
	close(p.met)
	return cut
}

// cancelRequest is how such a message begins: its length and its code.
var cancelRequest = []byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e}

func (p *proxy) keepsRequest(b []byte) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes.HasPrefix(b, cancelRequest) {
		for _, c := range p.hung {
			_ = c.Close()
		}
		p.hung = nil
	}
	if !p.hanging || b[0] != 'P' && b[0] != 'B' { // Parse; Bind of what was parsed before
		return pass
	}
	p.hanging = false
	return swallow
}
