package crashtest

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	gcp "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

// google is Google's stand-in, which survives every kill.
type google struct {
	*gcp.Server
	RPC, URL string
	Profiles map[string]string // name → the lines of its section that differ
}

// withGoogle gives a rig's replicas a profile of each mode, each with accounts of its own.
func (r *rig) withGoogle() *google {
	r.t.Helper()
	const token = "ya29.crash-test"
	var accounts []gcp.Account
	for _, name := range []string{"shared-token", "shared-key", "slot-one", "slot-two", "own-key-one", "own-key-two"} {
		accounts = append(accounts, gcp.Account{Name: name})
	}
	server, err := gcp.New(gcp.Config{BrokerToken: token, Accounts: accounts})
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.ServeGRPC(l) })
	web := httptest.NewServer(server)
	r.t.Cleanup(func() {
		server.Close()
		serving.Wait()
		web.Close()
	})
	r.write("gcp_token", token)
	email := server.Email
	r.settings.Google = &google{server, "http://" + l.Addr().String(), web.URL, map[string]string{
		"impersonate": fmt.Sprintf("mode: impersonate\n      service_account: %s", email("shared-token")),
		"slot":        fmt.Sprintf("mode: slot\n      share_percent: 100\n      accounts: [%s, %s]", email("slot-one"), email("slot-two")),
		"key":         fmt.Sprintf("mode: key\n      service_account: %s", email("shared-key")),
		"own-key":     fmt.Sprintf("mode: key\n      dedicated: true\n      share_percent: 100\n      accounts: [%s, %s]", email("own-key-one"), email("own-key-two")),
	}}
	return r.settings.Google
}

// A replica is killed at each point of a version's life at Google. The next one brings accounts, tokens and keys
// to what the ledger says.
func TestGoogleKilledAndRestarted(t *testing.T) {
	t.Parallel()
	for _, profile := range []string{"impersonate", "slot", "key", "own-key"} {
		for _, point := range killPoints {
			usual := point == "after_reply" || profile == "slot" && point == "after_revoke_asked"
			if !usual && os.Getenv("TASKPASS_LONG") == "" || testing.Short() && profile != "slot" { // all of them by make test-long
				continue
			}
			t.Run(profile+"/"+point, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				g := r.withGoogle()
				victim := r.start(point)
				ask := client.IssueRequest{TaskID: "task-1", AgentID: "agent-1", Profile: profile, Scopes: []string{"read"}, TTLSeconds: 600}
				if profile == "impersonate" || profile == "slot" && point == "after_refresh_intent" {
					ask.TTLSeconds = 10 // nothing can end it sooner: the version before it needs the account
				}
				r.walkTo(victim, point, ask)
				victim.awaitKilled()
				next := r.start("")
				// Minutes pass: a fresh key that is not on the list is then surely not there.
				r.exec("UPDATE versions SET issued_at = issued_at - interval '10 minutes'")
				r.settle()
				r.googleHolds(g)
				// What was let go is taken by nobody before its time, and the other account serves.
				ask.TaskID = "task-2"                                        // the first may have ended
				r.eventually("something is issued afterwards", func() bool { // making a key takes its time on a busy machine
					return next.issue(ask, "").ok()
				})
				r.googleHolds(g)
			})
		}
	}
}

// walkTo makes the calls that lead a victim to the point at which it dies.
func (r *rig) walkTo(victim *replica, point string, ask client.IssueRequest) {
	r.t.Helper()
	if strings.HasPrefix(point, "after_redeem") {
		byTicket := ask
		byTicket.Delivery = client.IssueRequestDeliveryTicket
		victim.issue(byTicket, "")
		victim.redeem(r.book.takeTicket())
		return
	}
	victim.issue(ask, "")
	switch {
	case strings.HasPrefix(point, "after_refresh"):
		victim.refresh(r.book.take(1, "refresh", false), "")
	case point == "after_task_ended":
		victim.endTask(ask.TaskID)
	case strings.HasPrefix(point, "after_revoke"):
		victim.revoke(r.book.take(1, "revoke", true))
	}
}

// googleHolds holds what is at Google against the ledger.
func (r *rig) googleHolds(g *google) {
	r.t.Helper()
	states := map[string]string{}
	rows, err := r.admin.Query(r.t.Context(), "SELECT id, state FROM versions")
	if err != nil {
		r.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, state string
		if err := rows.Scan(&id, &state); err != nil {
			r.t.Fatal(err)
		}
		states[id] = state
	}
	if err := rows.Err(); err != nil {
		r.t.Fatal(err)
	}
	for _, token := range g.Tokens() {
		switch state := broker.State(states[token.Reason]); {
		case state == "":
			r.t.Errorf("token %d of %s is on no ledger", token.ID, token.Account)
		case state.Ended() && g.UsableID(token.ID):
			r.t.Errorf("token %d of %s works, and its version is %s", token.ID, token.Account, state)
		}
	}
	for _, name := range []string{"shared-key", "own-key-one", "own-key-two"} {
		info, _ := g.Account(g.Email(name))
		for _, k := range info.Keys {
			if state := broker.State(states[k.CommonName]); state != broker.StateActive {
				r.t.Errorf("a key of %s stands, and its version is %q", info.Email, state)
			}
		}
	}
	r.accountsHold(g)
}

// accountsHold: one that rests is disabled, one that is held is not.
func (r *rig) accountsHold(g *google) {
	r.t.Helper()
	rows, err := r.admin.Query(r.t.Context(), "SELECT email, state FROM accounts")
	if err != nil {
		r.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var email, state string
		if err := rows.Scan(&email, &state); err != nil {
			r.t.Fatal(err)
		}
		info, ok := g.Account(email)
		if !ok || info.Disabled != (state == string(broker.AccountResting)) {
			r.t.Errorf("%s is %s, and disabled: %v", strings.Split(email, "@")[0], state, info.Disabled)
		}
	}
	if err := rows.Err(); err != nil {
		r.t.Fatal(err)
	}
}
