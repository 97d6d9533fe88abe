package audit

import (
	"context"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
)

// Traced answers whose an upstream name or a secret is. The JSON form is the API's.
type Traced struct {
	Held []Held `json:"held"`           // the newest first; none: nothing of that name is on the record or the ledger
	More bool   `json:"more,omitempty"` // others had it before these
	// AtOtherTimes: the name is known, but of none of its versions that may have been usable at the time asked for.
	AtOtherTimes bool `json:"at_other_times,omitempty"`

	// Events of months before this one (2006-01) are in files: they are not in Held, and what only they tell is not known
	// here. Empty: all are on the record.
	ArchivedBefore string `json:"archived_before,omitempty"`
}

// Held is one version that bore the name, or had the secret: who held it, what for, and what became of it.
type Held struct {
	CredentialID      string            `json:"credential_id"`
	Version           int               `json:"version"`
	VersionID         string            `json:"version_id"`
	TaskID            string            `json:"task_id"`
	ParentTaskID      string            `json:"parent_task_id,omitempty"`
	AgentID           string            `json:"agent_id"`
	Caller            string            `json:"caller"`
	Profile           string            `json:"profile"`
	Provider          string            `json:"provider"`
	RequestedScopes   []string          `json:"requested_scopes"`
	Scopes            []string          `json:"scopes"`
	TTLSeconds        float64           `json:"ttl_seconds"`
	State             string            `json:"state"`
	IssuedAt          time.Time         `json:"issued_at"`
	ExpiresAt         time.Time         `json:"expires_at"`
	UpstreamExpiresAt *time.Time        `json:"upstream_expires_at,omitempty"`
	Upstream          string            `json:"upstream"`
	UpstreamIDs       []string          `json:"upstream_ids,omitempty"`
	Trace             map[string]string `json:"trace,omitempty"`
	Fingerprint       string            `json:"fingerprint,omitempty"`
	Cause             string            `json:"cause,omitempty"`
	Reason            string            `json:"reason,omitempty"`
	Life              Life              `json:"life"`
	Events            []json.RawMessage `json:"events"` // of this version, oldest first; the newest 200 that are not archived
	// Contradictions are where the ledger says otherwise than the events: then what the events say is given.
	Contradictions []Contradiction `json:"contradictions,omitempty"`

	Ending Ending `json:"-"`
}

// TraceQuery is what was found, and when it was used.
type TraceQuery struct {
	Name        string    // from the upstream's log, in one of the forms that it writes; or a credential's id
	Fingerprint []byte    // SHA-256 of a secret, in place of a name
	At          time.Time // zero: any time. Else only what may have been usable then.
	Limit       int       // versions; 1 to MaxTraced; zero: 20
}

// TraceOf is the query for what somebody gives: sha256:… is a secret's fingerprint, all else a name.
func TraceOf(text string) (q TraceQuery, err error) {
	if !strings.HasPrefix(strings.ToLower(text), hashed) {
		return TraceQuery{Name: text}, nil
	}
	q.Fingerprint, err = ParseFingerprint(text)
	return q, err
}

const (
	// MaxTraced is the most versions that one trace tells of.
	MaxTraced = 100

	traceReads  = 5000            // events that are read to find versions
	traceEvents = 200             // of one version
	clocksApart = 5 * time.Minute // by which the upstream's clock and ours may disagree
)

// Trace finds the versions that bore a name, by the record, and what became of them, by the ledger as far as the record
// bears it out. Once months are archived it finds them by the ledger too: it keeps all, and who had a name may be alive.
func (l *Log) Trace(ctx context.Context, q TraceQuery, now time.Time) (Traced, error) {
	if q.Limit == 0 {
		q.Limit = 20
	}
	q.Limit = min(max(q.Limit, 1), MaxTraced)
	ids, more, err := l.versionsOf(ctx, q)
	if err != nil {
		return Traced{}, err
	}
	archived, err := l.ArchivedBefore(ctx)
	if err == nil && archived != "" && !more {
		ids, more, err = l.onLedger(ctx, q, ids)
	}
	if err != nil {
		return Traced{}, err
	}
	held, err := l.told(ctx, ids, now)
	t := Traced{Held: []Held{}, More: more, ArchivedBefore: archived}
	for _, h := range held {
		if !h.bears(q.Name) || !q.At.IsZero() && !h.Usable(q.At) {
			continue
		}
		if len(t.Held) == q.Limit {
			t.More = true
			break
		}
		t.Held = append(t.Held, h)
	}
	if err == nil && len(t.Held) == 0 && !q.At.IsZero() {
		q.At, q.Limit = time.Time{}, 1
		ids, _, err = l.versionsOf(ctx, q)
		if err == nil && len(ids) == 0 && archived != "" {
			ids, _, err = l.onLedger(ctx, q, ids)
		}
		t.AtOtherTimes = len(ids) > 0
	}
	return t, err
}

// told is what the ledger says of versions, held against the record. The two are read one after the other: what they
// contradict each other in counts only if the ledger said the same before and after the record was read.
func (l *Log) told(ctx context.Context, ids []string, now time.Time) (list []Held, err error) {
	ledger, err := l.ledger(ctx, ids, now)
	for range 3 {
		if err != nil {
			return nil, err
		}
		list = slices.Clone(ledger)
		if err := l.stories(ctx, list); err != nil {
			return nil, err
		}
		agreed := true
		for i := range list {
			list[i].witness()
			agreed = agreed && len(list[i].Contradictions) == 0
		}
		list = slices.DeleteFunc(list, func(h Held) bool { return h.CredentialID == "" }) // neither here nor there
		if agreed {
			return list, nil
		}
		before := ledger
		if ledger, err = l.ledger(ctx, ids, now); err == nil && reflect.DeepEqual(before, ledger) {
			return list, nil
		}
	}
	return list, err
}

// most is how many versions are looked at.
func (q TraceQuery) most() int {
	if q.At.IsZero() {
		return q.Limit + 1
	}
	return MaxTraced // some of them had ended by then
}

// versionsOf lists the ids of the versions that events with the name are about, the newest first.
func (l *Log) versionsOf(ctx context.Context, q TraceQuery) (ids []string, more bool, err error) {
	query := Query{UpstreamID: searched(q.Name), Fingerprint: q.Fingerprint}
	if strings.HasPrefix(q.Name, "crd_") {
		query.CredentialID, query.UpstreamID = q.Name, ""
	}
	if !q.At.IsZero() { // it was minted before it was used
		query.Until = q.At.Add(clocksApart + time.Microsecond) // it does not include itself
	}
	most := q.most()
	seen := map[string]bool{}
	for read := 0; read < traceReads; {
		query.Limit = max(5*(most-len(seen)), 20) // a version has seldom more events
		p, err := l.find(ctx, query, whose)
		if err != nil {
			return nil, false, err
		}
		read += len(p.Events)
		for _, found := range p.Events {
			id, last, _ := strings.Cut(string(found), " ")
			if !versionID.MatchString(id) || seen[id] {
				continue
			}
			seen[id] = true
			if q.At.IsZero() || !deadBefore(last, q.At.Add(-clocksApart)) {
				ids = append(ids, id)
			}
			if len(seen) == most {
				return ids, true, nil
			}
		}
		if p.Next == "" {
			return ids, false, nil
		}
		query.Cursor = p.Next
	}
	return ids, true, nil
}

// whose is the id of the version that an event is about, if it is about one: Append puts it before the names that the
// upstream gave. After a version's end comes what it was, for deadBefore: the canonical form from `state` on.
const whose = "coalesce(upstream_ids[1], '') || CASE WHEN type IN ('credential.revoked', 'credential.expired') THEN ' {' || substr(body, strpos(body, '\"state\":')) ELSE '' END"

var versionID = regexp.MustCompile("^[a-z2-7]{16}$")

// deadBefore tells whether an event says for certain that its version was dead at a time, so that it need not be looked
// up: most of those that had a pool's key.
func deadBefore(event string, at time.Time) bool {
	var r struct {
		State      broker.State      `json:"state"`
		Revocation *recordRevocation `json:"revocation"`
	}
	if event == "" || json.Unmarshal([]byte(event), &r) != nil || r.Revocation == nil || r.Revocation.Result == broker.ResultReleased {
		return false
	}
	since, err := time.Parse(time.RFC3339, r.Revocation.EffectiveAt)
	return err == nil && since.Before(at) && (r.State == broker.StateRevoked || r.State == broker.StateExpired)
}

// storiesOf finds the latest events of each version by its id, which is the first of its names. It is asked for as Query
// asks for one field alone, and for the same reason.
const storiesOf = `SELECT v.n, e.body FROM unnest($1::text[]) WITH ORDINALITY AS v (id, n), LATERAL (
	SELECT xid, seq, body FROM events WHERE upstream_ids[1] BETWEEN v.id AND v.id AND upstream_ids[1] IS NOT NULL
	ORDER BY upstream_ids[1] DESC, xid DESC, seq DESC LIMIT $2) e
ORDER BY v.n, e.xid, e.seq`

// stories adds the versions' events, oldest first.
func (l *Log) stories(ctx context.Context, held []Held) error {
	if len(held) == 0 {
		return nil
	}
	ids := make([]string, len(held))
	for i := range held {
		ids[i], held[i].Events = held[i].VersionID, []json.RawMessage{}
	}
	return l.planned(ctx, storiesOf, []any{ids, traceEvents}, true, func(rows pgx.Rows) error {
		var n int
		var body string
		_, err := pgx.ForEachRow(rows, []any{&n, &body}, func() error {
			h := &held[n-1]
			var r record
			if json.Unmarshal([]byte(body), &r) != nil {
				return Undecodable() // not left out: what is said of the version would rest on less than there is
			}
			if r.VersionID == h.VersionID {
				h.Events = append(h.Events, json.RawMessage(body))
			}
			return nil
		})
		return err
	})
}

// Usable tells whether the version may have been used at a time, as far as is known, five minutes more or less.
func (h Held) Usable(at time.Time) bool {
	if at.Before(h.IssuedAt.Add(-clocksApart)) {
		return false
	}
	switch {
	case h.Life.Since != nil:
		return !at.After(h.Life.Since.Add(clocksApart))
	case h.Life.Until != nil:
		return !at.After(h.Life.Until.Add(clocksApart))
	}
	return true
}

// searched is the part of a name by which events are found. AWS writes a session with its role before its name, Google a
// key and an account as resources.
func searched(name string) string {
	switch {
	case strings.HasPrefix(name, "arn:") && strings.Contains(name, ":assumed-role/"):
		return name[strings.LastIndex(name, "/")+1:]
	case principal(name):
		return name[strings.Index(name, ":")+1:]
	case strings.Contains(name, "/serviceAccounts/"):
		return name[strings.LastIndex(name, "/")+1:]
	}
	return strings.TrimPrefix(name, "serviceAccount:")
}

// principal tells whether the name is `AROA…:session`, AWS's principal id of a session.
func principal(name string) bool {
	role, _, found := strings.Cut(name, ":")
	return found && strings.HasPrefix(role, "AROA") && !strings.ContainsAny(role, "/.")
}

// bears holds a name that says more than what was searched for against what the upstream called the version: a session
// of the same name under another role is not ours.
func (h Held) bears(name string) bool {
	key := ""
	switch {
	case strings.HasPrefix(name, "arn:"):
		key = "assumed_role_arn"
	case principal(name):
		key = "assumed_role_id"
	}
	known, ok := h.Trace[key]
	return !ok || known == name
}
