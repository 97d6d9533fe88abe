package broker

import (
	"encoding/json"
	"fmt"
)

// Bundle is a version's secret as the agent gets it: named fields, and the environment variables that the vendor's own
// tools read. Values that are not secret (a region) are wrapped all the same.
type Bundle struct {
	Type    string // "aws_session", "api_key", …
	Primary string // the field whose fingerprint is recorded
	Fields  map[string]Secret
	Env     map[string]Secret

	// TaskToken is the task's own token, where it was asked for: sealed along, so that a repeated request gets it again.
	TaskToken Secret
}

// Fingerprint is the SHA-256 of the primary field.
func (b Bundle) Fingerprint() []byte {
	sum := b.Fields[b.Primary].Fingerprint()
	return sum[:]
}

// Sealer encrypts a bundle at rest. The version's id is associated data: a sealed bundle opens only under its own row.
type Sealer interface {
	Seal(plain []byte, id VersionID) ([]byte, error)
	Open(sealed []byte, id VersionID) ([]byte, error)
}

// sealedBundle is the JSON inside a sealed bundle. It exists in memory only, between Reveal and Seal.
type sealedBundle struct {
	Type    string            `json:"type"`
	Primary string            `json:"primary"`
	Fields  map[string]string `json:"fields"`
	Env     map[string]string `json:"env"`

	TaskToken string `json:"task_token,omitempty"`
}

func sealBundle(s Sealer, b Bundle, id VersionID) ([]byte, error) {
	plain, err := json.Marshal(sealedBundle{b.Type, b.Primary, revealAll(b.Fields), revealAll(b.Env), b.TaskToken.Reveal()})
	if err != nil {
		return nil, fmt.Errorf("encoding a secret for sealing: %w", err)
	}
	defer clear(plain)
	return s.Seal(plain, id)
}

func openBundle(s Sealer, sealed []byte, id VersionID) (Bundle, error) {
	plain, err := s.Open(sealed, id)
	if err != nil {
		return Bundle{}, fmt.Errorf("opening the sealed secret of version %s: %w", id, err)
	}
	defer clear(plain)
	var b sealedBundle
	if err := json.Unmarshal(plain, &b); err != nil {
		return Bundle{}, fmt.Errorf("the sealed secret of version %s does not decode", id) // err may quote the text
	}
	return Bundle{b.Type, b.Primary, hideAll(b.Fields), hideAll(b.Env), NewSecret(b.TaskToken)}, nil
}

func revealAll(m map[string]Secret) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v.Reveal()
	}
	return out
}

func hideAll(m map[string]string) map[string]Secret {
	out := make(map[string]Secret, len(m))
	for k, v := range m {
		out[k] = NewSecret(v)
	}
	return out
}
