package aws

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// SessionInfo is what the vendor knows of a session, without its secrets.
type SessionInfo struct {
	Name           string // RoleSessionName
	AccessKeyID    string // ASIA…
	Role           string // the role's name
	UserID         string // what aws:userid is: RoleID:Name
	ARN            string // arn:aws:sts::…:assumed-role/Role/Name
	SourceIdentity string
	Tags           map[string]string // transitive tags of the calling session included
	// TransitiveTagKeys are the keys of Tags that chained sessions bear too, sorted.
	TransitiveTagKeys []string
	Policy            string   // the inline session policy; empty: none
	PolicyARNs        []string // the managed session policies, as asked for
	Issued            time.Time
	Expires           time.Time
}

// Sessions are all sessions that were made, the expired ones too, oldest first.
func (s *Server) Sessions() []SessionInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]SessionInfo, 0, len(s.sessions))
	for _, ses := range s.sessions {
		info := ses.info
		info.Tags = maps.Clone(info.Tags)
		info.TransitiveTagKeys, info.PolicyARNs = slices.Clone(info.TransitiveTagKeys), slices.Clone(info.PolicyARNs)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b SessionInfo) int {
		if c := a.Issued.Compare(b.Issued); c != 0 {
			return c
		}
		return strings.Compare(a.AccessKeyID, b.AccessKeyID)
	})
	return out
}

// AssumeRoleCalls counts the AssumeRole calls that arrived properly signed, whatever
// became of them.
func (s *Server) AssumeRoleCalls() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.assumeCalls
}

// RoleARN is the ARN of a role by name, or empty if there is none.
func (s *Server) RoleARN(name string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.roles[name]; r != nil {
		return r.arn()
	}
	return ""
}

// RolePolicies are a role's inline policies, name to document; nil if there is no such
// role.
func (s *Server) RolePolicies(role string) map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.roles[role]
	if r == nil {
		return nil
	}
	out := map[string]string{}
	for name, p := range r.policies.inline {
		out[name] = p.text
	}
	return out
}

// SetRolePolicy edits a role behind the broker's back, by IAM's rules. An empty
// document takes the policy away.
func (s *Server) SetRolePolicy(role, name, document string) error {
	s.mu.RLock()
	r := s.roles[role]
	s.mu.RUnlock()
	if r == nil {
		return noRole(role)
	}
	if document == "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		r.deleteInline(name)
		return nil
	}
	if e := s.setPolicy(r, name, document); e != nil {
		return operatorError("role "+role, e)
	}
	return nil
}

// SetUserPolicy replaces what the broker user may do ([Config].UserPolicy).
func (s *Server) SetUserPolicy(document string) error {
	doc, e := parsePolicy(document)
	if e != nil {
		return operatorError("user policy", e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.userPolicy = doc
	return nil
}

// PutObject stores an object without asking anybody, and makes the bucket if needed.
// It panics on a name that S3 does not allow.
func (s *Server) PutObject(bucket, key string, body []byte) {
	if !bucketPattern.MatchString(bucket) || key == "" || len(key) > 1024 {
		panic(fmt.Sprintf("sandbox aws: not an S3 name: %q %q", bucket, key))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		s.buckets[bucket] = map[string]object{}
	}
	s.buckets[bucket][key] = object{
		body: slices.Clone(body), contentType: "application/octet-stream", modified: s.cfg.Now().UTC(),
	}
}

// CreateBucket makes an empty bucket, unless it is there.
func (s *Server) CreateBucket(bucket string) {
	if !bucketPattern.MatchString(bucket) {
		panic(fmt.Sprintf("sandbox aws: not an S3 name: %q", bucket))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		s.buckets[bucket] = map[string]object{}
	}
}

// Object returns an object's body as it is now.
func (s *Server) Object(bucket, key string) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.buckets[bucket][key]
	return slices.Clone(o.body), ok
}
