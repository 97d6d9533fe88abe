package aws

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

// Limits on a request's body. A query call's largest field is a policy document of
// 131,072 characters (IAM API Reference, PutRolePolicy), three times that when
// percent-encoded.
const (
	maxQueryBody  = 1 << 20
	maxObjectBody = 32 << 20
)

// defaultMaxSkew is how far X-Amz-Date may be from the server's clock: S3's 15 minutes
// (S3 API Reference, RequestTimeTooSkewed), used for all. The IAM User Guide says five
// minutes "in most cases", and not for which services.
const defaultMaxSkew = 15 * time.Minute

// Config says what the account has. It is copied by New.
type Config struct {
	// AccountID is the broker user's account, 12 digits. Zero: 123456789012.
	AccountID string
	// UserName is the broker user's name. Zero: taskpass-broker.
	UserName string
	// AccessKeyID and SecretAccessKey are the broker user's long-lived key. Required.
	AccessKeyID     string
	SecretAccessKey string
	// UserPolicy is what the user may do: an identity policy. Zero: STS and IAM whole,
	// and nothing of S3.
	UserPolicy string
	// Roles are the roles that exist.
	Roles []Role
	// ManagedPolicies are the documents, by ARN, of the managed policies that exist, as
	// AddManagedPolicy takes them. Roles and AssumeRole's PolicyArns may name them.
	ManagedPolicies map[string]string
	// Now is the server's clock: expiry, aws:CurrentTime, issue times and the Date
	// header come from it. Zero: time.Now.
	Now func() time.Time
	// MaxSkew is how far a request's X-Amz-Date may be from Now. Zero: 15 minutes.
	// Negative: unchecked, for a test that moves Now, since the SDK signs with its own
	// clock.
	MaxSkew time.Duration
}

// Role is an IAM role.
type Role struct {
	// Name is the role's name. Required.
	Name string
	// AccountID is the role's account. Zero: the broker user's.
	AccountID string
	// RoleID is the stable id, AROA…, with which aws:userid begins. Zero: a random one.
	RoleID string
	// MaxSessionDuration is 1 to 12 hours. Zero: 1 hour.
	MaxSessionDuration time.Duration
	// Policy is what the role may do: an identity policy that counts as attached (so
	// not towards the limit of inline policies). Required.
	Policy string
	// AttachedPolicies are ARNs of managed policies of the role's account, or AWS's.
	AttachedPolicies []string
	// ExternalID, if set, must be given to AssumeRole.
	ExternalID string
	// TrustedARNs may assume the role: a user, a role (all its sessions), one session,
	// an account's root (all in it), or "*". Empty: the broker user only, or nobody if
	// there are WebTrusts.
	TrustedARNs []string
	// WebTrusts may assume the role with a web identity token.
	WebTrusts []WebTrust
}

// Server is the stand-in: an http.Handler that is safe for many goroutines.
type Server struct {
	cfg     Config
	user    principal
	faults  fault.Line[Fault]
	closed  chan struct{}
	closing sync.Once

	mu           sync.RWMutex
	userPolicy   *iampolicy.Document
	roles        map[string]*role          // by name
	managed      map[string]*managedPolicy // by ARN
	sessions     map[string]*session
	sessionsLeft int // when old ones were last forgotten
	buckets      map[string]map[string]object
	assumeCalls  int
	// webIdentities are by the SHA-256 of their token.
	webIdentities map[[sha256.Size]byte]WebIdentity
}

const defaultUserPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:*","sts:*"],"Resource":"*"}]}`

var accountPattern = regexp.MustCompile(`^\d{12}$`)

// New checks cfg and makes a server that has no session and no bucket.
func New(cfg Config) (*Server, error) {
	if cfg.AccessKeyID == "" || cfg.SecretAccessKey == "" {
		return nil, errors.New("sandbox aws: AccessKeyID and SecretAccessKey are required")
	}
	if cfg.AccountID == "" {
		cfg.AccountID = "123456789012"
	}
	if !accountPattern.MatchString(cfg.AccountID) {
		return nil, fmt.Errorf("sandbox aws: account %q is not 12 digits", cfg.AccountID)
	}
	if cfg.UserName == "" {
		cfg.UserName = "taskpass-broker"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxSkew == 0 {
		cfg.MaxSkew = defaultMaxSkew
	}
	s := &Server{
		cfg:           cfg,
		user:          newUser(cfg),
		closed:        make(chan struct{}),
		roles:         map[string]*role{},
		managed:       map[string]*managedPolicy{},
		sessions:      map[string]*session{},
		buckets:       map[string]map[string]object{},
		webIdentities: map[[sha256.Size]byte]WebIdentity{},
	}
	if err := s.fill(); err != nil {
		return nil, err
	}
	return s, nil
}

// fill gives the account what its Config says.
func (s *Server) fill() error {
	cfg := s.cfg
	if err := s.SetUserPolicy(cmp.Or(cfg.UserPolicy, defaultUserPolicy)); err != nil {
		return err
	}
	for arn, text := range cfg.ManagedPolicies {
		if err := s.AddManagedPolicy(arn, text); err != nil {
			return err
		}
	}
	for _, r := range cfg.Roles {
		made, err := newRole(r, cfg, s.user.arn)
		if err != nil {
			return err
		}
		if s.roles[r.Name] != nil {
			return fmt.Errorf("sandbox aws: role %q is there twice", r.Name)
		}
		s.roles[r.Name] = made
		for _, arn := range r.AttachedPolicies {
			if err := s.AttachRolePolicy(r.Name, arn); err != nil {
				return err
			}
		}
		made.former = made.policies
	}
	return nil
}

// Close lets go of every request that a fault holds. It does not stop the listener,
// which is the caller's; the server may not be used afterwards.
func (s *Server) Close() {
	s.closing.Do(func() { close(s.closed) })
}

// call is one request on its way through.
type call struct {
	*http.Request
	service string // "sts", "iam" or "s3"
	action  string // "AssumeRole", "GetObject"; empty if there is no such thing
	raw     []byte // body as sent, which is what is signed
	body    []byte // S3: the object, out of its framing
	who     principal
	stale   bool   // a fault has reads see what was there before the last change
	id      string // request id
	now     time.Time
}

// ServeHTTP authenticates the request, then does what a fault or the action says.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{Request: r, id: newRequestID(), now: s.cfg.Now()}
	w.Header().Set("Date", c.now.UTC().Format(http.TimeFormat))
	w.Header().Set("Server", "taskpass-sandbox")
	if e := s.admit(c); e != nil {
		e.write(w, c)
		return
	}
	if c.action == "AssumeRole" {
		s.mu.Lock()
		s.assumeCalls++
		s.mu.Unlock()
	}
	s.serveWithFaults(w, c)
}

// admit reads the body, finds out what is asked and by whom. It also refuses what
// is signed for another service. AssumeRoleWithWebIdentity alone needs no signature.
func (s *Server) admit(c *call) *apiError {
	sig, refusal := parseAuthorization(c)
	unsigned := c.service == "sts" && c.Header.Get("Authorization") == ""
	if refusal != nil && !unsigned {
		return refusal
	}
	limit := int64(maxQueryBody)
	if c.service == "s3" {
		limit = maxObjectBody
	}
	raw, err := io.ReadAll(io.LimitReader(c.Body, limit+1))
	if err != nil {
		return fail(http.StatusBadRequest, "IncompleteBody", "The request body could not be read.")
	}
	if int64(len(raw)) > limit {
		return fail(http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
	}
	c.raw, c.body = raw, raw
	if unsigned {
		if queryAction(c) == nil && c.action == "AssumeRoleWithWebIdentity" {
			return nil
		}
		return refusal
	}
	if e := s.authenticate(c, sig); e != nil {
		return e
	}
	if c.service == "s3" {
		var e *apiError
		c.action, e = s3Action(c)
		return e
	}
	return queryAction(c)
}

// serve does the work of an authenticated call and writes the answer.
func (s *Server) serve(w http.ResponseWriter, c *call) {
	var e *apiError
	switch c.service {
	case "sts":
		e = s.serveSTS(w, c)
	case "iam":
		e = s.serveIAM(w, c)
	default:
		e = s.serveS3(w, c)
	}
	if e != nil {
		e.write(w, c)
	}
}

// queryAction reads the form of a query-protocol call.
func queryAction(c *call) *apiError {
	if c.Method != http.MethodPost || c.URL.Path != "/" ||
		!strings.HasPrefix(c.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return fail(http.StatusBadRequest, "InvalidAction", "This endpoint takes POST / with a form.")
	}
	form, err := parseForm(c.raw)
	if err != nil {
		return fail(http.StatusBadRequest, "MalformedQueryString", "The query string contains a syntax error.")
	}
	c.Form, c.action = form, form.Get("Action")
	return nil
}
