//go:build peers

package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"
)

// peerDelay is how much further than the first replica the second is from AWS: what the one reads and then writes, the
// other has overtaken meanwhile, unless they take turns.
const peerDelay = 20 * time.Millisecond

// peerDetour is a way to a server on which a request takes peerDelay more, or as long as a test wants.
type peerDetour struct {
	url  string
	gate atomic.Pointer[peerGate]
}

// peerGate holds one request.
type peerGate struct {
	holds  []byte        // what such a request has in its body
	closed chan struct{} // closed when the request is there
	open   chan struct{} // to be closed for it to go on
}

func startPeerDetour(t *testing.T, target string) *peerDetour {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	// The request is signed for the detour's address: the Host header stays.
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.Host = r.In.Host
	}}
	d := &peerDetour{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has gone
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		<-time.After(peerDelay)
		if g := d.gate.Load(); g != nil && bytes.Contains(body, g.holds) && d.gate.CompareAndSwap(g, nil) {
			close(g.closed)
			<-g.open
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

// hold holds the next request that has the text in its body. The test opens the gate in any case.
func (d *peerDetour) hold(text string) *peerGate {
	g := &peerGate{holds: []byte(text), closed: make(chan struct{}), open: make(chan struct{})}
	d.gate.Store(g)
	return g
}
