package openapi_test

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

// signed is an api whose record is in a signed tree once settle was called.
type signed struct {
	*api
	sequencer *sequence.Sequencer
	keys      *tree.Keys
}

func newSigned(t *testing.T) *signed {
	t.Helper()
	private, _, err := tree.NewKey("taskpass.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tree.NewSigner("taskpass.example/log", private)
	if err != nil {
		t.Fatal(err)
	}
	s := &signed{keys: signer.Keys()}
	s.api = newAPI(t, func(a *api, c *setup) {
		c.openapi.Tree = sequence.NewLog(a.store.Pool(), signer.Keys())
		s.sequencer, err = sequence.New(sequence.Config{Pool: a.store.Pool(), Signer: signer, Logger: slog.New(slog.DiscardHandler), Clock: a.clock.Now})
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// settle puts all that was written so far into the tree and signs it.
func (s *signed) settle() tree.Checkpoint {
	s.t.Helper()
	var events int64
	if err := s.admin().QueryRow(s.t.Context(), "SELECT count(*) FROM events").Scan(&events); err != nil {
		s.t.Fatal(err)
	}
	var c tree.Checkpoint
	eventually(s.t, "all events are in the tree", func() bool {
		s.clock.Advance(2 * time.Second)
		if _, err := s.sequencer.Round(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		got := s.call("aud", "GET", "/v1/audit/checkpoint", "")
		if got.status != http.StatusOK {
			return false
		}
		var err error
		if c, err = s.keys.Open([]byte(got.body)); err != nil {
			s.t.Fatal(err)
		}
		return c.Size >= events
	})
	return c
}

func raw(t *testing.T, list ...string) (out [][]byte) {
	t.Helper()
	for _, s := range list {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// What the API answers is enough for somebody else's code to verify an event.
func TestProofsOverTheAPI(t *testing.T) {
	t.Parallel()
	a := newSigned(t)
	if got := a.call("aud", "GET", "/v1/audit/checkpoint", ""); got.status != http.StatusNotFound {
		t.Errorf("before the first checkpoint: %d", got.status)
	}
	issued := a.issue("t")
	before := a.settle()
	a.issue("t2")
	c := a.settle()
	event := a.audit("task_id=t&type=credential.issued").Events[0]

	var in openapi.InclusionProof
	strict(t, a.call("aud", "GET", "/v1/audit/proof/inclusion?event_id="+event.ID, "").body, &in)
	hasher := rfc6962.DefaultHasher
	if in.Checkpoint != c.Note || in.TreeSize != c.Size || in.EventID != event.ID || !strings.Contains(in.Body, issued.ID) {
		t.Errorf("%+v", in)
	}
	if err := proof.VerifyInclusion(hasher, uint64(in.Index), uint64(in.TreeSize), hasher.HashLeaf([]byte(in.Body)), raw(t, in.Proof...), c.Root[:]); err != nil {
		t.Error(err)
	}
	var byIndex openapi.InclusionProof
	strict(t, a.call("ops", "GET", fmt.Sprintf("/v1/audit/proof/inclusion?index=%d&tree_size=%d", in.Index, before.Size), "").body, &byIndex)
	if byIndex.Body != in.Body || byIndex.Root != before.Root.String() {
		t.Errorf("%+v", byIndex)
	}
	var p openapi.ConsistencyProof
	strict(t, a.call("aud", "GET", fmt.Sprintf("/v1/audit/proof/consistency?from=%d", before.Size), "").body, &p)
	if p.FromRoot != before.Root.String() || p.ToRoot != c.Root.String() || p.To != c.Size {
		t.Errorf("%+v", p)
	}
	if err := proof.VerifyConsistency(hasher, uint64(p.From), uint64(p.To), raw(t, p.Proof...), before.Root[:], c.Root[:]); err != nil {
		t.Error(err)
	}
	tile := a.call("aud", "GET", "/v1/audit/tile/0/0", "")
	if int64(len(tile.body)) != c.Size*32 || tile.body[in.Index*32:in.Index*32+32] != string(raw(t, in.LeafHash)[0]) {
		t.Errorf("a tile of %d bytes", len(tile.body))
	}
	// A proof is a reading of the record; a tile, which has only hashes, is not.
	reads := a.audit("type=audit.read&order=newest")
	var proofs []map[string]string
	for _, e := range reads.Events {
		if e.Trace["proof"] != "" {
			proofs = append(proofs, e.Trace)
		}
	}
	want := map[string]string{"proof": "inclusion", "event_id": event.ID, "index": fmt.Sprint(in.Index)}
	consistency := map[string]string{"proof": "consistency", "from": fmt.Sprint(p.From), "to": fmt.Sprint(p.To)}
	if len(proofs) != 3 || cmp.Diff(consistency, proofs[0]) != "" || cmp.Diff(want, proofs[1]) != "" || cmp.Diff(want, proofs[2]) != "" {
		t.Errorf("readings: %v", proofs)
	}
}

func TestWhoMaySeeProofs(t *testing.T) {
	t.Parallel()
	a := newSigned(t)
	a.issue("t")
	c := a.settle()
	paths := []string{"/v1/audit/checkpoint", "/v1/audit/proof/inclusion?index=0", "/v1/audit/proof/consistency?from=1", "/v1/audit/tile/0/0"}
	for _, path := range paths {
		a.want(a.call("orch", "GET", path, ""), broker.CodeForbidden)
		a.want(a.call("", "GET", path, ""), broker.CodeUnauthenticated)
		for _, who := range []string{"aud", "ops"} {
			if got := a.call(who, "GET", path, ""); got.status != http.StatusOK {
				t.Errorf("%s %s: %d %s", who, path, got.status, got.body)
			}
		}
	}
	beyond := fmt.Sprint(c.Size + 1000)
	for path, code := range map[string]broker.Code{
		"inclusion":                             broker.CodeInvalidRequest,
		"inclusion?event_id=evt_x&index=1":      broker.CodeInvalidRequest,
		"inclusion?event_id=evt_x":              broker.CodeNotFound,
		"inclusion?index=-1":                    broker.CodeInvalidRequest,
		"inclusion?index=" + beyond:             broker.CodeNotFound,
		"inclusion?index=0&tree_size=" + beyond: broker.CodeNotFound,
		"inclusion?index=0&tree_size=0":         broker.CodeInvalidRequest,
		"consistency":                           broker.CodeInvalidRequest,
		"consistency?from=0":                    broker.CodeInvalidRequest,
		"consistency?from=2&to=1":               broker.CodeNotFound,
		"consistency?from=1&to=" + beyond:       broker.CodeNotFound,
	} {
		a.want(a.call("aud", "GET", "/v1/audit/proof/"+path, ""), code)
	}
	a.want(a.call("aud", "GET", "/v1/audit/tile/0/7", ""), broker.CodeNotFound)
	a.want(a.call("aud", "GET", "/v1/audit/tile/9/0", ""), broker.CodeInvalidRequest)
	// A service without a key says so.
	unsigned := newAPI(t)
	for _, path := range paths {
		unsigned.want(unsigned.call("aud", "GET", path, ""), broker.CodeNotFound)
	}
}

// What was altered in the database is not proven, and the answer says no more than that it failed.
func TestNoProofOfAnAlteredEvent(t *testing.T) {
	t.Parallel()
	a := newSigned(t)
	a.issue("t")
	a.settle()
	event := a.audit("task_id=t&type=credential.issued").Events[0]
	a.exec("UPDATE events SET body = replace(body, 'agent-17', 'agent-18') WHERE id = '" + event.ID + "'")
	got := a.call("aud", "GET", "/v1/audit/proof/inclusion?event_id="+event.ID, "")
	if p := a.want(got, broker.CodeRecordTampered); p.Status != http.StatusInternalServerError || p.Retryable || p.RetryAfterSeconds != 0 {
		t.Errorf("%+v", p)
	}
	if strings.Contains(got.body, "agent-18") || !strings.Contains(a.log.String(), "the stored tree is not whole") {
		t.Errorf("%s", got.body)
	}
}

// Whatever of the tree was altered, no answer looks like an outage, which a client would try again.
func TestTamperingIsNoOutage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, path string }{
		"a removed event":    {"DELETE FROM events WHERE (xid, seq) = (SELECT xid, seq FROM tree_leaves WHERE idx = 1)", "proof/inclusion?index=1"},
		"a removed leaf":     {"DELETE FROM tree_leaves WHERE idx = 1", "proof/inclusion?index=1"},
		"another leaf":       {"UPDATE tree_leaves SET hash = sha256('x') WHERE idx = 1", "proof/inclusion?index=1"},
		"another beginning":  {"UPDATE tree_leaves SET hash = sha256('x') WHERE idx = 0", "proof/consistency?from=1"},
		"leaves are missing": {"DELETE FROM tree_leaves WHERE idx = 0", "tile/0/0"},
		"the checkpoint":     {"UPDATE tree_checkpoints SET note = replace(note, E'\ntime 2', E'\ntime 1')", "checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newSigned(t)
			a.issue("t")
			a.settle()
			if got := a.call("aud", "GET", "/v1/audit/"+c.path, ""); got.status != http.StatusOK {
				t.Fatalf("before: %d %s", got.status, got.body)
			}
			a.exec(c.sql)
			if p := a.want(a.call("aud", "GET", "/v1/audit/"+c.path, ""), broker.CodeRecordTampered); p.Retryable {
				t.Errorf("%+v", p)
			}
		})
	}
}

// A consistency proof that was not had was once no reading, though it tells of which sizes something is signed.
func TestProofsThatAreNotHadAreReadings(t *testing.T) {
	t.Parallel()
	a := newSigned(t)
	a.issue("t")
	first := a.settle()
	a.issue("t2")
	c := a.settle()
	a.want(a.call("aud", "GET", fmt.Sprintf("/v1/audit/proof/consistency?from=%d&to=%d", first.Size, c.Size+1000), ""), broker.CodeNotFound)
	a.want(a.call("aud", "GET", "/v1/audit/proof/inclusion?event_id=evt_x", ""), broker.CodeNotFound)
	a.exec("UPDATE tree_leaves SET hash = sha256('x') WHERE idx = 0")
	a.want(a.call("ops", "GET", "/v1/audit/proof/consistency?from=1", ""), broker.CodeRecordTampered)
	a.want(a.call("ops", "GET", "/v1/audit/proof/inclusion?index=0", ""), broker.CodeRecordTampered)
	var got []string
	for _, e := range a.audit("type=audit.read").Events {
		if e.Trace["proof"] != "" {
			got = append(got, fmt.Sprint(e.Caller.Name, e.Trace))
		}
	}
	want := []string{
		fmt.Sprintf("audmap[from:%d proof:consistency to:%d]", first.Size, c.Size+1000), "audmap[event_id:" + audit.Hashed("evt_x") + " index:0 proof:inclusion]",
		"opsmap[from:1 proof:consistency]", "opsmap[index:0 proof:inclusion]",
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// What cannot be put on the record is not answered, also if the answer is that there is none.
	a.exec("REVOKE INSERT ON events FROM taskpass_service")
	a.want(a.call("aud", "GET", "/v1/audit/proof/inclusion?event_id=evt_x", ""), broker.CodeUnavailable)
	a.want(a.call("aud", "GET", "/v1/audit/proof/consistency?from=2&to=1", ""), broker.CodeUnavailable)
}

// The newest event is removed: that is no event without a body. (It once was a 200, as of an archived one.) An archived one
// is, by the database's own word, and only of its own month.
func TestNoProofOfARemovedEvent(t *testing.T) {
	t.Parallel()
	a := newSigned(t)
	a.issue("t")
	c := a.settle()
	event := a.audit("task_id=t&type=credential.issued").Events[0]
	a.exec("DELETE FROM events WHERE id = '" + event.ID + "'")
	const archived = `INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256)
		SELECT to_char(at AT TIME ZONE 'UTC' + interval '%d months', 'YYYY-MM'), 0, 1, 1, 1, sha256('') FROM tree_leaves WHERE event_id = '%s'`
	path := "/v1/audit/proof/inclusion?event_id=" + event.ID
	a.want(a.call("aud", "GET", path, ""), broker.CodeRecordTampered)
	a.exec(fmt.Sprintf(archived, 1, event.ID))
	a.want(a.call("aud", "GET", path, ""), broker.CodeRecordTampered)
	if !strings.Contains(a.log.String(), "its month was not archived") {
		t.Error("the log does not say why")
	}
	a.exec(fmt.Sprintf(archived, 0, event.ID))
	var in openapi.InclusionProof
	strict(t, a.call("aud", "GET", path, "").body, &in)
	hasher := rfc6962.DefaultHasher
	if in.Body != "" || in.EventID != event.ID ||
		proof.VerifyInclusion(hasher, uint64(in.Index), uint64(in.TreeSize), raw(t, in.LeafHash)[0], raw(t, in.Proof...), c.Root[:]) != nil {
		t.Errorf("%+v", in)
	}
}

// An event that is none is not left out of a trace: what is said of the version would rest on less than is there.
func TestTraceOfTamperedEvents(t *testing.T) {
	t.Parallel()
	a := newSigned(t)
	path := "/v1/audit/trace?upstream_id=" + a.issue("t").ID
	if got := a.call("aud", "GET", path, ""); got.status != http.StatusOK {
		t.Fatal(got)
	}
	for _, body := range []string{"x", "[]", `{"id": 5}`} {
		a.exec("UPDATE events SET body = '" + body + "' WHERE type = 'credential.intended' AND task_id = 't'")
		if p := a.want(a.call("aud", "GET", path, ""), broker.CodeRecordTampered); p.Retryable {
			t.Errorf("%s: it is not worth another attempt", body)
		}
	}
}
