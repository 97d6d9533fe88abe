package console

import (
	"bytes"
	"context"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

const (
	maxTraced   = 20 // credentials that one name leads to on a page
	maxVersion1 = 50 // versions of each
)

// traced is what a name leads to.
type traced struct {
	Asked string
	By    string // the part of it that was found, if not all
	Found []version
	More  bool
	All   string
}

// trace leads from a name in an upstream's log, or from a secret's fingerprint, to who held it, when and why.
func (c *console) trace(ctx context.Context, r *http.Request) (view, error) {
	q, err := field(r, "q")
	if err != nil {
		return view{}, err
	}
	t := traced{Asked: q}
	var ids []broker.CredentialID
	sum := fingerprint(q)
	if sum != nil {
		ids, err = c.Record.Fingerprinted(ctx, sum, maxTraced+1)
	} else if q != "" {
		t.By, ids, err = c.named(ctx, q)
		t.All = "/console/events?" + url.Values{"upstream_id": {t.By}}.Encode()
	}
	if err != nil {
		return view{}, err
	}
	t.More = len(ids) > maxTraced
	for _, id := range ids[:min(len(ids), maxTraced)] {
		list, err := c.Ledger.VersionsOf(ctx, id, maxVersion1)
		if err != nil {
			return view{}, err
		}
		matching := slices.DeleteFunc(slices.Clone(list), func(cr broker.Credential) bool { return !bears(cr.Version, t.By, sum) })
		if len(matching) == 0 {
			matching = list[:min(len(list), 1)]
		}
		found, err := c.versions(ctx, matching, audit.Query{CredentialID: string(id)})
		if err != nil {
			return view{}, err
		}
		t.Found = append(t.Found, found...)
	}
	name := "upstream_id"
	if sum != nil {
		name = "fingerprint"
	}
	return view{Title: "Trace", Template: "trace", Data: t, Asked: asked("trace", len(ids) > 0, map[string]string{name: q})}, nil
}

// fingerprint reads sha256:HEX; nil for anything else.
func fingerprint(q string) []byte {
	text, ok := strings.CutPrefix(strings.ToLower(q), "sha256:")
	sum, err := hex.DecodeString(text)
	if !ok || err != nil || len(sum) != 32 {
		return nil
	}
	return sum
}

// named finds the credentials that an upstream knows by a name. Logs write some names with more around them (an ARN of an
// assumed role, a principal id with the session's name): then the last part is what was recorded.
func (c *console) named(ctx context.Context, q string) (by string, ids []broker.CredentialID, err error) {
	tries := []string{q}
	if i := strings.LastIndexAny(q, "/:"); i >= 0 && i+1 < len(q) {
		tries = append(tries, q[i+1:])
	}
	if strings.HasPrefix(q, "crd_") {
		return q, []broker.CredentialID{broker.CredentialID(q)}, nil
	}
	for _, by := range tries {
		found, _, err := c.find(ctx, audit.Query{UpstreamID: by, Limit: audit.MaxPage})
		if err != nil {
			return "", nil, err
		}
		for _, e := range found {
			if id := broker.CredentialID(e.CredentialID); id != "" && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		if len(ids) > 0 {
			return by, ids, nil
		}
	}
	return q, nil, nil
}

// bears tells whether a version is known by that name, or its secret by that hash.
func bears(v broker.Version, name string, sum []byte) bool {
	if sum != nil {
		return bytes.Equal(v.Fingerprint, sum)
	}
	return string(v.ID) == name || slices.Contains(v.UpstreamIDs, name)
}
