package console_test

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit/audittest"
)

var badge = regexp.MustCompile(`<span class="badge (\w+)">([^<]+)</span>`)

// What a page says of a version is what the API's trace says: never alive where that says no, nor dead where it is not
// known. (The pages once called a ticket that nobody had redeemed alive.)
func TestWordsSayWhatIsKnown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	v := r.enter("aud")
	if _, err := r.admin.Exec(t.Context(), "ALTER TABLE versions DISABLE TRIGGER ALL"); err != nil {
		t.Fatal(err)
	}
	const ended = "due_at = NULL, ended_at = now(), sealed = NULL, "
	for _, set := range []string{
		"state = 'active'", "state = 'active', self_expires = false",
		"state = 'issuing'", "state = 'issuing', unclaimed = true",
		"state = 'lost', cause = 'abandoned'", "state = 'lost', cause = 'abandoned', self_expires = false",
		"state = 'revoking', cause = 'revoked', self_expires = false", "state = 'revoking', cause = 'revoked', result = 'expires', effective_at = expires_at",
		"state = 'stuck', cause = 'revoked', self_expires = false", "state = 'stuck', cause = 'revoked', self_expires = false, basis = 'awaiting_rotation'",
		ended + "state = 'failed'",
		ended + "state = 'revoked', cause = 'revoked', result = 'destroyed', basis = 'unheard_of', effective_at = issued_at",
		ended + "state = 'revoked', cause = 'revoked', result = 'denied', effective_at = issued_at + interval '90 minutes'",
		ended + "state = 'revoked', cause = 'revoked', result = 'released', effective_at = issued_at",
		ended + "state = 'expired', cause = 'expired'", ended + "state = 'expired', cause = 'expired', self_expires = false",
	} {
		const back = `UPDATE versions SET state = 'active', self_expires = true, unclaimed = false, cause = '', result = '', basis = '', effective_at = NULL, due_at = expires_at, ended_at = NULL, sealed = '\x01'`
		tx, err := r.admin.Begin(t.Context())
		must(t, err)
		_, err = tx.Exec(t.Context(), back)
		must(t, err)
		_, err = tx.Exec(t.Context(), "UPDATE versions SET "+set)
		must(t, err)
		_, err = tx.Exec(t.Context(), audittest.BearOut)
		must(t, err)
		must(t, tx.Commit(context.WithoutCancel(t.Context())))
		for _, later := range []time.Duration{0, 30 * time.Minute, 100 * time.Minute} {
			r.clock.Advance(later)
			var known struct {
				Held []struct{ Life struct{ Alive, How string } }
			}
			_, body := r.api("aud", "GET", "/v1/audit/trace?upstream_id="+c.Trace["access_key_id"], "")
			must(t, json.Unmarshal([]byte(body), &known))
			life := known.Held[0].Life
			may := map[string][]string{"yes": {"alive"}, "no": {"dead"}, "maybe": {"ending", "unsure"}}[life.Alive]
			for _, path := range []string{"/console/trace?q=" + c.Trace["access_key_id"], "/console/credential?id=" + c.ID, "/console/credentials"} {
				said := badge.FindStringSubmatch(v.see(path))
				if said == nil || !slices.Contains(may, said[1]) || (said[2] == "dead") != (life.Alive == "no" && life.How != "not_yet_made") {
					t.Errorf("%s, after %s, %s: %s %s, and the page says %v", set, later, path, life.Alive, life.How, said)
				}
			}
			r.clock.Advance(-later)
		}
	}
}
