package gcp

import (
	"bytes"
	"slices"
	"time"
)

// TokenInfo is what the stand-in knows of an access token, without its value.
type TokenInfo struct {
	ID        int // in the order in which they were given out, from 1
	Account   string
	Caller    string // who asked; the account itself where its key did
	Delegates []string
	Scopes    []string
	Key       string // id of the key that it was made with
	Reason    string // x-goog-request-reason, which Cloud Audit Logs show
	Bounded   bool   // by a Credential Access Boundary
	Issued    time.Time
	Expires   time.Time
}

// Tokens are all access tokens that were given out, the dead ones too, oldest first.
func (s *Server) Tokens() []TokenInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]TokenInfo, 0, len(s.tokens))
	for _, t := range s.tokens {
		out = append(out, TokenInfo{
			ID: t.id, Account: t.account.email, Caller: t.caller, Delegates: slices.Clone(t.delegates), Scopes: slices.Clone(t.scopes),
			Key: t.key, Reason: t.reason, Bounded: t.boundary != nil, Issued: t.issued, Expires: t.expires,
		})
	}
	slices.SortFunc(out, func(a, b TokenInfo) int { return a.ID - b.ID })
	return out
}

// LastToken is the value of the last access token that was given out, for tests of
// replies that were lost; empty: none was.
func (s *Server) LastToken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for value, t := range s.tokens {
		if t.id == s.tokenSeq {
			return value
		}
	}
	return ""
}

// Usable tells whether an access token works now.
func (s *Server) Usable(value string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.bearer(value)
	return ok
}

// Calls counts the calls of a method that arrived authenticated, whatever became of
// them. Methods are named as in Fault.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// AccountInfo is an account as it is now.
type AccountInfo struct {
	Email, UniqueID string
	Disabled        bool
	Keys            []KeyInfo
}

// KeyInfo is a key of an account.
type KeyInfo struct {
	ID         string
	CommonName string // of its certificate's subject
	NotBefore  time.Time
	NotAfter   time.Time
}

// Account looks an account up by email.
func (s *Server) Account(email string) (AccountInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[email]
	if a == nil {
		return AccountInfo{}, false
	}
	info := AccountInfo{Email: a.email, UniqueID: a.uniqueID, Disabled: a.disabled}
	for _, k := range sortedKeys(a) {
		info.Keys = append(info.Keys, KeyInfo{k.id, k.certificate.Subject.CommonName, k.certificate.NotBefore, k.certificate.NotAfter})
	}
	return info, true
}

// SetDisabled disables or enables an account, as an operator would in the console.
func (s *Server) SetDisabled(email string, disabled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[email]; a != nil {
		a.disabled = disabled
	}
}

// AddKey gives an account a key, as an operator would: a certificate in PEM form.
func (s *Server) AddKey(email string, certificate []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[email]
	if a == nil {
		return permissionDenied("iam.serviceAccountKeys.create", email)
	}
	_, err := s.addKey(a, certificate)
	return err
}

// CreateBucket makes a bucket, if there is none of the name.
func (s *Server) CreateBucket(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[name] == nil {
		s.buckets[name] = &bucket{objects: map[string][]byte{}, roles: map[string][]string{}}
	}
}

// Grant gives an account a role on a bucket, such as roles/storage.objectViewer.
func (s *Server) Grant(bucket, email, role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[bucket]; b != nil {
		b.roles[email] = append(b.roles[email], role)
	}
}

// PutObject writes an object past all checks.
func (s *Server) PutObject(bucket, name string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[bucket]; b != nil {
		b.objects[name] = bytes.Clone(body)
	}
}

// Object reads an object past all checks.
func (s *Server) Object(bucket, name string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[bucket]
	if b == nil {
		return nil, false
	}
	body, ok := b.objects[name]
	return bytes.Clone(body), ok
}

// UsableID tells whether the token of that TokenInfo works now.
func (s *Server) UsableID(id int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for value, t := range s.tokens {
		if t.id == id {
			_, ok := s.bearer(value)
			return ok
		}
	}
	return false
}
