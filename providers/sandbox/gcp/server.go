package gcp

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"sync"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/grpc"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

// CloudPlatform is the scope that Cloud Storage, among others, accepts.
const CloudPlatform = "https://www.googleapis.com/auth/cloud-platform"

// Config says what the project has. It is copied by New.
type Config struct {
	// Project is the project's id. Zero: taskpass-sandbox.
	Project string
	// BrokerToken is the bearer token of the broker's own identity. Required.
	BrokerToken string
	// BrokerEmail is that identity. Zero: taskpass-broker@PROJECT.iam.gserviceaccount.com.
	BrokerEmail string
	// Accounts are the service accounts that exist.
	Accounts []Account
	// LongLifetime are the emails that the organization's policy
	// constraints/iam.allowServiceAccountCredentialLifetimeExtension lists.
	LongLifetime []string
	// MaxAccounts a project may have. Zero: 100.
	MaxAccounts int
	// KeysExhausted answers an eleventh key with RESOURCE_EXHAUSTED and a RetryInfo of a
	// day, in place of FAILED_PRECONDITION.
	KeysExhausted bool
	// BrokerLacks are permissions on service accounts that the broker's identity has not.
	BrokerLacks []string
	// Overlong is how much longer than asked tokens and keys live.
	Overlong time.Duration
	// Recertify shows keys in certificates of the server's own, in place of the uploaded.
	Recertify bool
	// Now is the server's clock. Zero: time.Now.
	Now func() time.Time
}

// Account is a service account that exists from the start.
type Account struct {
	// Name is the part of the email before the @. Required.
	Name string
	// TokenCreators are emails that hold roles/iam.serviceAccountTokenCreator on the
	// account. nil: the broker's.
	TokenCreators []string
	Disabled      bool
}

// Server is the stand-in: an http.Handler, and with ServeGRPC the two gRPC services.
// It is safe for many goroutines.
type Server struct {
	cfg     Config
	rpc     *grpc.Server
	signing func() (*rsa.PrivateKey, error) // of ID tokens; made when it is first needed
	faults  fault.Line[Fault]
	closed  chan struct{}
	closing sync.Once
	conns   conns

	mu       sync.Mutex
	accounts map[string]*account // by email
	tokens   map[string]*token   // by value
	buckets  map[string]*bucket
	hide     Visibility
	calls    map[string]int
	tokenSeq int
}

var projectPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{4,28}[a-z0-9]$`)

// New checks cfg and makes a server that has no token and no bucket.
func New(cfg Config) (*Server, error) {
	if cfg.BrokerToken == "" {
		return nil, errors.New("sandbox gcp: BrokerToken is required")
	}
	if cfg.Project == "" {
		cfg.Project = "taskpass-sandbox"
	}
	if !projectPattern.MatchString(cfg.Project) {
		return nil, fmt.Errorf("sandbox gcp: %q is no project id", cfg.Project)
	}
	if cfg.BrokerEmail == "" {
		cfg.BrokerEmail = "taskpass-broker@" + cfg.Project + ".iam.gserviceaccount.com"
	}
	if cfg.MaxAccounts == 0 {
		cfg.MaxAccounts = 100 // IAM, "Quotas and limits"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg: cfg, closed: make(chan struct{}),
		accounts: map[string]*account{}, tokens: map[string]*token{}, buckets: map[string]*bucket{}, calls: map[string]int{},
		signing: sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }),
	}
	for _, a := range cfg.Accounts {
		if !accountIDPattern.MatchString(a.Name) {
			return nil, fmt.Errorf("sandbox gcp: %q is no account id", a.Name)
		}
		made := s.newAccount(a.Name)
		if s.accounts[made.email] != nil {
			return nil, fmt.Errorf("sandbox gcp: account %q is there twice", a.Name)
		}
		made.disabled = a.Disabled
		if a.TokenCreators != nil {
			made.creators = map[string]bool{}
			for _, email := range a.TokenCreators {
				made.creators[email] = true
			}
		}
		s.accounts[made.email] = made
	}
	s.rpc = grpc.NewServer(grpc.UnaryInterceptor(s.intercept))
	credentialspb.RegisterIAMCredentialsServer(s.rpc, credentialsService{s: s})
	adminpb.RegisterIAMServer(s.rpc, &adminService{s: s})
	return s, nil
}

// ServeGRPC serves both gRPC services on l until Close, and closes l.
func (s *Server) ServeGRPC(l net.Listener) error {
	return s.rpc.Serve(&trackedListener{l, &s.conns})
}

// Close ends the gRPC services and lets go of every request that a fault holds. The
// HTTP listener is the caller's. The server may not be used afterwards.
func (s *Server) Close() {
	s.closing.Do(func() {
		close(s.closed)
		s.rpc.Stop()
	})
}

// Email is the address of an account of the project, by the part before the @.
func (s *Server) Email(name string) string {
	return name + "@" + s.cfg.Project + ".iam.gserviceaccount.com"
}

// BrokerEmail is the broker's own identity.
func (s *Server) BrokerEmail() string { return s.cfg.BrokerEmail }

// ServeHTTP answers the token endpoints and the object API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := s.cfg.Now()
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	method, serve := s.route(r)
	if serve == nil {
		writeJSONError(w, http.StatusNotFound, "notFound", "Not Found")
		return
	}
	s.count(method)
	s.serveWithFaults(w, r, method, serve)
}

// route names the call, as faults and counts know it, and who serves it.
func (s *Server) route(r *http.Request) (method string, serve http.HandlerFunc) {
	switch path := r.URL.EscapedPath(); {
	case path == "/v1/token" && r.Method == http.MethodPost:
		return "ExchangeToken", s.exchangeToken
	case path == "/token" && r.Method == http.MethodPost:
		return "Token", s.oauthToken
	case path == "/oauth2/v3/certs" && r.Method == http.MethodGet:
		return "Certs", s.certs
	default:
		return s.routeObject(r, path)
	}
}

func (s *Server) count(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
}

// conns are the open gRPC connections, by the client's address: a lost reply is a
// connection that breaks.
type conns struct {
	mu   sync.Mutex
	open map[string]net.Conn
}

func (c *conns) cut(addr string) {
	c.mu.Lock()
	conn := c.open[addr]
	c.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
}

type trackedListener struct {
	net.Listener
	conns *conns
}

func (l *trackedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.conns.mu.Lock()
	defer l.conns.mu.Unlock()
	if l.conns.open == nil {
		l.conns.open = map[string]net.Conn{}
	}
	addr := conn.RemoteAddr().String()
	l.conns.open[addr] = conn
	return &trackedConn{Conn: conn, addr: addr, conns: l.conns}, nil
}

type trackedConn struct {
	net.Conn
	addr  string
	conns *conns
}

func (c *trackedConn) Close() error {
	c.conns.mu.Lock()
	delete(c.conns.open, c.addr)
	c.conns.mu.Unlock()
	return c.Conn.Close()
}

// wait returns when the client is gone, the server closes, or the timer fires.
func (s *Server) wait(ctx context.Context, timer <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-s.closed:
	case <-timer:
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return hex.EncodeToString(b)
}
