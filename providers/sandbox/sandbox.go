package sandbox

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
	"github.com/taskpass/taskpass/providers/sandbox/gcp"
	"github.com/taskpass/taskpass/providers/sandbox/model"
	"github.com/taskpass/taskpass/providers/sandbox/stripe"
)

// What exists in every sandbox.
const (
	Region   = "us-east-1" // any other works too
	Bucket   = "taskpass-demo"
	RoleName = "taskpass-demo"
	RoleARN  = "arn:aws:iam::123456789012:role/taskpass-demo"

	PoolKeys = 3 // of the model API, for a pool
)

const rolePolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*",` +
	`"Resource":["arn:aws:s3:::taskpass-demo","arn:aws:s3:::taskpass-demo/*"]}]}`

// Config is what may differ from start to start. The zero value is fine.
type Config struct {
	// Now is the vendors' clock. Zero: time.Now. With a clock that is moved, requests
	// are no longer checked for the age of their signature: clients sign by their own.
	Now func() time.Time
}

// Sandbox is a set of running stand-ins. Its fields may be read, not changed.
type Sandbox struct {
	AWS    *aws.Server
	AWSURL string // endpoint of STS, IAM and S3 (path-style)
	// The broker user's key, random at every start.
	BrokerAccessKeyID     string
	BrokerSecretAccessKey string

	GCP    *gcp.Server
	GCPURL string // endpoint of the token endpoints and of Cloud Storage
	GCPRPC string // endpoint of IAM and of IAM Service Account Credentials; http:// for plaintext gRPC
	// The broker's identity, random at every start.
	GCPBrokerToken string
	GCPShared      string   // email of the account that many tasks share
	GCPSlots       []string // emails of those that one task holds at a time

	Model       *model.Server
	ModelURL    string
	ModelKeys   []string // secrets, sk-sandbox-…; the first PoolKeys are those of the pool
	ModelKeyIDs []string // their public names, in the same order

	Stripe     *stripe.Server
	StripeURL  string
	StripeKeys map[string]string // secrets of restricted keys, by what each may do: see StripePermissions

	servers []*http.Server
	running sync.WaitGroup // serve loops
	closing sync.Once
	err     error // of the first Close

	mu       sync.Mutex
	closed   bool           // no request starts any more
	handlers sync.WaitGroup // requests; Add only under mu and while not closed
}

// Start runs all stand-ins, each on a free port of 127.0.0.1. Close ends them.
func Start(cfg Config) (_ *Sandbox, err error) {
	s := &Sandbox{BrokerAccessKeyID: "AKIA" + random(10, base32.StdEncoding.EncodeToString), BrokerSecretAccessKey: random(20, hex.EncodeToString)}
	s.AWS, err = aws.New(s.awsConfig(cfg))
	if err != nil {
		return nil, err
	}
	s.AWS.CreateBucket(Bucket)
	if err := s.newGCP(cfg); err != nil {
		return nil, err
	}
	var keys []model.Key
	for i := range PoolKeys + 2 { // two more, for a rotation
		k := model.Key{ID: fmt.Sprintf("apikey_sandbox_%d", i+1), Secret: "sk-sandbox-" + random(20, hex.EncodeToString)}
		keys = append(keys, k)
		s.ModelKeys, s.ModelKeyIDs = append(s.ModelKeys, k.Secret), append(s.ModelKeyIDs, k.ID)
	}
	if s.Model, err = model.New(model.Config{Keys: keys}); err != nil {
		return nil, err
	}
	if err := s.newStripe(cfg); err != nil {
		return nil, err
	}
	for _, v := range []struct {
		handler http.Handler
		url     *string
	}{{s.AWS, &s.AWSURL}, {s.GCP, &s.GCPURL}, {s.Model, &s.ModelURL}, {s.Stripe, &s.StripeURL}} {
		if *v.url, err = s.listen(v.handler); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := s.listenRPC(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sandbox) awsConfig(cfg Config) aws.Config {
	c := aws.Config{
		AccessKeyID: s.BrokerAccessKeyID, SecretAccessKey: s.BrokerSecretAccessKey, Now: cfg.Now,
		Roles: []aws.Role{{Name: RoleName, MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy}},
	}
	if cfg.Now != nil {
		c.MaxSkew = -1
	}
	return c
}

// listen serves h on a port of its own.
func (s *Sandbox) listen(h http.Handler) (url string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("sandbox: %w", err)
	}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !s.begin() {
				panic(http.ErrAbortHandler)
			}
			defer s.handlers.Done()
			h.ServeHTTP(w, r)
		}),
	}
	s.servers = append(s.servers, srv)
	s.running.Go(func() { _ = srv.Serve(l) }) // returns at Close
	return "http://" + l.Addr().String(), nil
}

// begin counts a request in, unless the sandbox is closing: a connection that was
// accepted just before may still bring one.
func (s *Sandbox) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.handlers.Add(1)
	}
	return !s.closed
}

// SeedTask puts two objects under tasks/<task>/ for the demo to read, and returns
// their keys.
func (s *Sandbox) SeedTask(task string) []string {
	keys := []string{"tasks/" + task + "/brief.txt", "tasks/" + task + "/input.json"}
	brief, input := []byte("What task "+task+" is to do.\n"), fmt.Appendf(nil, `{"task":%q,"rows":[1,2,3]}`+"\n", task)
	for _, put := range []func(bucket, key string, body []byte){s.AWS.PutObject, s.GCP.PutObject} {
		put(Bucket, keys[0], brief)
		put(Bucket, keys[1], input)
	}
	return keys
}

// Close drops every connection and returns when nothing of the sandbox runs any more.
// A second call does nothing.
func (s *Sandbox) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.AWS.Close()
		s.GCP.Close()
		for _, srv := range s.servers {
			s.err = errors.Join(s.err, srv.Close())
		}
		s.running.Wait()
		s.handlers.Wait()
	})
	return s.err
}

func random(n int, encode func([]byte) string) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return encode(b)
}
