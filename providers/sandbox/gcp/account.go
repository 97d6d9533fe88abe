package gcp

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"time"
)

// maxKeys is how many user-managed keys an account may have (IAM, "Quotas and limits").
const maxKeys = 10

var accountIDPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{4,28}[a-z0-9]$`)

type account struct {
	email, uniqueID, displayName string
	disabled                     bool
	created                      time.Time
	creators                     map[string]bool // who holds serviceAccountTokenCreator on it
	keys                         map[string]*key // by id
	hidden                       hiding
}

type key struct {
	id          string
	account     *account
	public      *rsa.PublicKey
	certificate *x509.Certificate
	pem         []byte
	hidden      hiding
}

// token is an access token that was given out.
type token struct {
	id        int
	account   *account
	caller    string // who asked for it; the account itself for a key
	delegates []string
	scopes    []string
	issued    time.Time
	expires   time.Time
	source    *token // what it was exchanged for
	boundary  *boundary
	key       string
	reason    string // of the request, as the audit log has it
}

// Visibility is how long something fresh cannot be seen: IAM is eventually consistent.
type Visibility struct {
	For   time.Duration // by the server's clock
	Calls int           // how many looks find nothing
}

// hiding is the visibility of one thing.
type hiding struct {
	until time.Time
	looks int
}

// Hide has all accounts and keys that are made from now on be invisible at first:
// NOT_FOUND, absent from lists, and signatures by them unknown.
func (s *Server) Hide(v Visibility) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hide = v
}

// newHiding must be called with s.mu held, or before the server is shared.
func (s *Server) newHiding() hiding { return hiding{s.cfg.Now().Add(s.hide.For), s.hide.Calls} }

// seen counts a look. It must be called with s.mu held.
func (h *hiding) seen(now time.Time) bool {
	if h.looks > 0 {
		h.looks--
		return false
	}
	return !now.Before(h.until)
}

func (s *Server) newAccount(id string) *account {
	n, _ := rand.Int(rand.Reader, big.NewInt(1e18)) // never fails since Go 1.24
	return &account{
		email: s.Email(id), uniqueID: fmt.Sprintf("1%020d", n), created: s.cfg.Now(),
		creators: map[string]bool{s.cfg.BrokerEmail: true}, keys: map[string]*key{}, hidden: s.newHiding(),
	}
}

// find looks an account up by email or unique id, as the last part of a resource name.
// With s.mu held.
func (s *Server) find(id string) *account {
	if a := s.accounts[id]; a != nil {
		if !a.hidden.seen(s.cfg.Now()) {
			return nil
		}
		return a
	}
	for _, a := range s.accounts {
		if a.uniqueID == id && a.hidden.seen(s.cfg.Now()) {
			return a
		}
	}
	return nil
}

// issue makes an access token of an account. With s.mu held. Tokens end at whole
// seconds, as Google's do.
func (s *Server) issue(t token, lifetime time.Duration) (value string, made *token) {
	s.tokenSeq++
	t.id = s.tokenSeq
	t.issued = s.cfg.Now()
	if t.expires.IsZero() {
		t.expires = t.issued.Truncate(time.Second).Add(lifetime + s.cfg.Overlong)
	}
	value = "ya29.c." + randomHex(48)
	s.tokens[value] = &t
	return value, &t
}

// bearer says whose a token is: an account's, if it works now. With s.mu held.
func (s *Server) bearer(value string) (*token, bool) {
	t := s.tokens[value]
	if t == nil || !s.cfg.Now().Before(t.expires) || t.account.disabled || s.accounts[t.account.email] != t.account {
		return nil, false
	}
	return t, true
}

// caller is the identity behind an Authorization header, and whether its token is
// bounded, which no IAM service accepts.
func (s *Server) caller(header string) (email string, ok bool) {
	value, found := strings.CutPrefix(header, "Bearer ")
	if !found {
		return "", false
	}
	if value == s.cfg.BrokerToken {
		return s.cfg.BrokerEmail, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.bearer(value)
	if !ok || t.boundary != nil || !slices.Contains(t.scopes, CloudPlatform) {
		return "", false
	}
	return t.account.email, true
}

// accountOf takes the account out of projects/…/serviceAccounts/ACCOUNT.
func accountOf(name string) (project, id string, ok bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0] != "projects" || parts[2] != "serviceAccounts" || parts[1] == "" || parts[3] == "" {
		return "", "", false
	}
	return parts[1], parts[3], true
}

func (s *Server) sorted() []*account {
	var list []*account
	for _, email := range slices.Sorted(maps.Keys(s.accounts)) {
		list = append(list, s.accounts[email])
	}
	return list
}

// HideAccount makes an account that exists be invisible at first, from now on.
func (s *Server) HideAccount(email string, v Visibility) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[email]; a != nil {
		a.hidden = hiding{s.cfg.Now().Add(v.For), v.Calls}
	}
}
