package lifetest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestTicket(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1", ticket))
	if len(c.Secret.Fields) > 0 || !broker.WellFormed(broker.PrefixTicket, c.Ticket.Value) || c.Status != client.Issuing {
		t.Fatalf("a ticket: %v, %s, with a secret: %v", c.Ticket.ExpiresAt, c.Status, len(c.Secret.Fields) > 0)
	}
	if want := r.clock.Now().Add(ticketTTL); !c.Ticket.ExpiresAt.Equal(want) {
		t.Errorf("the ticket ends %s, want %s", c.Ticket.ExpiresAt, want)
	}
	r.clock.advance(ticketTTL - time.Second)
	r.settled()
	if n := r.front.calls("AssumeRole"); n != 0 {
		t.Fatalf("the vendor was asked %d times before the redemption", n)
	}
	now := r.clock.Now()
	got := r.as("orch").redeem(c.Ticket.Value).want(t, http.StatusOK)
	if got.issued.ID != c.ID || got.issued.Status != client.Active || !got.issued.IssuedAt.Equal(now) || !got.issued.ExpiresAt.Equal(now.Add(ttl)) {
		t.Errorf("redeemed: %s %s, issued %s, expires %s", got.issued.ID, got.issued.Status, got.issued.IssuedAt, got.issued.ExpiresAt)
	}
	if got.header.Get("Cache-Control") != "no-store" {
		t.Error("a secret may be cached")
	}
	r.wantAlive("the redeemed secret", got.issued.Secret, "t1", true)

	r.as("orch").redeem(c.Ticket.Value).want(t, broker.CodeTicketRedeemed)
	r.as("orch").redeem(c.Ticket.Value).want(t, broker.CodeTicketRedeemed)
	if n := r.countEvents("t1", broker.EventTicketReused); n != 2 {
		t.Errorf("%d ticket.reused for 2 reuses", n)
	}
	r.wantAlive("a profile that keeps what was redeemed", got.issued.Secret, "t1", true)
	want := []string{"ticket.created", "ticket.redeemed", "credential.issued", "ticket.reused", "ticket.reused"}
	if got := types(r.events("t1")); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if n := r.front.calls("AssumeRole"); n != 1 {
		t.Errorf("the vendor was asked %d times", n)
	}
	r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	r.sound()
}

func TestReusedTicketRevokes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("strict", "t1", ticket))
	got := r.as("orch").redeem(c.Ticket.Value).want(t, http.StatusOK).issued
	second := r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated).issued
	r.as("orch").redeem(c.Ticket.Value).want(t, broker.CodeTicketRedeemed)
	r.settled()
	r.wantAlive("what the first got", got.Secret, "t1", false)
	r.wantAlive("what was refreshed since", second.Secret, "t1", false)
	if s := r.as("orch").get(c.ID).state; s.Status != client.Revoked {
		t.Errorf("it is %s", s.Status)
	}
	r.sound()
}

func TestTicketExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	late, swept := r.mustIssue(ask("aws", "t1", ticket)), r.mustIssue(ask("aws", "t2", ticket))
	r.clock.advance(ticketTTL)
	r.as("orch").redeem(late.Ticket.Value).want(t, broker.CodeTicketExpired)
	r.settled()
	for task, c := range map[string]client.IssuedCredential{"t1": late, "t2": swept} {
		r.as("orch").redeem(c.Ticket.Value).want(t, broker.CodeTicketExpired)
		if got := types(r.events(task)); !slices.Equal(got, []string{"ticket.created", "ticket.expired"}) {
			t.Errorf("events %v", got)
		}
		if s := r.as("orch").get(c.ID).state; s.Status != client.Failed || s.Cause != "expired" {
			t.Errorf("it is %s (%s)", s.Status, s.Cause)
		}
	}
	if n := r.front.calls("AssumeRole") + r.front.calls("PutRolePolicy"); n != 0 {
		t.Errorf("the vendor was asked %d times for a ticket that nobody redeemed", n)
	}
	if n := one[int](r, "SELECT count(*)::int FROM tickets WHERE sealed IS NOT NULL"); n != 0 {
		t.Errorf("%d tickets of no use are kept", n)
	}
	r.sound()
}

func TestTicketOfAnEndedCredential(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	revoked, ended, child := r.mustIssue(ask("aws", "t1", ticket)), r.mustIssue(ask("strict", "t2", ticket)), r.mustIssue(ask("pool", "t3", ticket, under("t2")))
	if s := r.as("orch").revoke(revoked.ID).want(t, http.StatusOK).state.Status; s != client.Failed {
		t.Errorf("revoked before its redemption it is %s", s)
	}
	r.as("orch").endTask("t2").want(t, http.StatusOK)
	for _, c := range []client.IssuedCredential{revoked, ended, child} {
		r.as("orch").redeem(c.Ticket.Value).want(t, broker.CodeCredentialEnded)
	}
	if n := r.front.calls("AssumeRole"); n != 0 {
		t.Errorf("the vendor was asked %d times", n)
	}
	if n := r.countEvents("", broker.EventTicketReused); n != 0 {
		t.Errorf("%d alarms for a first redemption", n)
	}
	r.sound()
}

func TestConcurrentRedemptions(t *testing.T) {
	t.Parallel()
	for _, profile := range []string{"aws", "strict"} {
		r := newRig(t)
		c := r.mustIssue(ask(profile, "t1", ticket))
		var mu sync.Mutex
		var won []client.IssuedCredential
		ended := 0
		together(20, func(i int) {
			got := r.as("orch").on(i).redeem(c.Ticket.Value)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case got.status == http.StatusOK:
				won = append(won, got.issued)
			case got.code == broker.CodeCredentialEnded && profile == "strict":
				ended++ // it won, and a reuse ended it while it was being minted
			case got.code != broker.CodeTicketRedeemed:
				t.Errorf("%s: %d %s", profile, got.status, got.code)
			}
		})
		if len(won)+ended != 1 || r.front.calls("AssumeRole") != 1 {
			t.Errorf("%s: %d won, %d ended, the vendor was asked %d times", profile, len(won), ended, r.front.calls("AssumeRole"))
		}
		if n := r.countEvents("t1", broker.EventTicketReused); n != 19 {
			t.Errorf("%s: %d ticket.reused for 19 reuses", profile, n)
		}
		r.settled()
		for _, w := range won {
			r.wantAlive(profile, w.Secret, "t1", profile == "aws")
		}
		r.sound()
	}
}

func TestGuessingTickets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1", ticket))
	guesser := r.as("orch").on(0)
	slowed := reply{}
	for i := range 40 {
		value := broker.NewToken(broker.PrefixTicket).Reveal()
		if i%2 == 1 {
			value = "tpx_nonsense"
		}
		if got := guesser.redeem(value); got.code != broker.CodeNotFound {
			slowed = got.want(t, broker.CodeRateLimited)
			if i < 10 {
				t.Errorf("slowed down at guess %d", i)
			}
			break
		}
	}
	if slowed.problem.RetryAfterSeconds < 1 || slowed.header.Get("Retry-After") == "" {
		t.Errorf("never slowed down, or not told for how long: %+v", slowed.problem)
	}
	// Who was slowed down may go on later, with a good ticket.
	r.clock.advance(time.Second)
	guesser.redeem(c.Ticket.Value).want(t, http.StatusOK)
}

// Neither tickets nor keys nor tokens are in the database as they are.
func TestNothingIsKeptPlain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	waiting := r.mustIssue(ask("aws", "t1", ticket, taskToken), "a-key-of-the-caller")
	inline := r.mustIssue(ask("aws", "t1", taskToken), "another-key-of-the-caller")
	r.as("orch").refresh(inline.ID, 1, "a-refresh-key-of-the-caller").want(t, http.StatusCreated)
	planted := []string{waiting.Ticket.Value, waiting.TaskToken, inline.TaskToken, inline.Secret.Fields["secret_access_key"],
		inline.Secret.Fields["session_token"], "key-of-the-caller", r.tokens["orch"]}
	rows, err := r.admin.Query(t.Context(), "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relkind = 'r' AND nspname = 'public'")
	if err != nil {
		t.Fatal(err)
	}
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		tables = append(tables, name)
	}
	seen := 0
	for _, table := range tables {
		text := one[string](r, fmt.Sprintf(`SELECT COALESCE(string_agg(t::text, E'\n'), '') FROM %q t`, table))
		seen += len(text)
		for _, p := range planted {
			if strings.Contains(text, p) || strings.Contains(text, fmt.Sprintf("%x", p)) {
				t.Errorf("the table %s holds %.8s… as it is", table, p)
			}
		}
	}
	if seen < 1000 {
		t.Error("the sweep saw next to nothing")
	}
}

func TestRepeatedTicketRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := ask("aws", "t1", ticket)
	first := r.mustIssue(q, "key")
	r.clock.advance(time.Minute)
	again := r.mustIssue(q, "key")
	if again.ID != first.ID || again.Ticket != first.Ticket {
		t.Errorf("the key answers another ticket: %s until %s", again.ID, again.Ticket.ExpiresAt)
	}
	r.as("orch").redeem(again.Ticket.Value).want(t, http.StatusOK)
	several := batch("aws", "pool")
	several.Delivery = client.IssueSeveralRequestDeliveryTicket
	one, two := r.as("orch").issueAll("t2", several, "key2").want(t, 201).several, r.as("orch").issueAll("t2", several, "key2").want(t, 201).several
	for i := range one {
		if one[i].ID != two[i].ID || one[i].Ticket != two[i].Ticket || one[i].Ticket.Value == "" {
			t.Errorf("ticket %d differs", i)
		}
	}
	r.sound()
}
