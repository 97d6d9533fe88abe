package crashtest

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/taskpass/taskpass/openapi/client"
)

// grant is a secret that reached a client.
type grant struct {
	Credential string
	Version    int
	Task       string
	Type       string
	Fields     map[string]string
	Asked, Got time.Time
	How        string
}

// keyed is a request that had an Idempotency-Key.
type keyed struct {
	Key        string
	Body       client.IssueRequest // of an issuance
	Refresh    string              // else the credential that was refreshed
	Credential string              // what was answered; empty: nothing reached the client
	Version    int
	Refused    string // the code, where it was answered with one
}

// book is what all clients of a rig remember.
type book struct {
	mu      sync.Mutex
	grants  []grant
	keys    []*keyed
	alive   []string          // credentials that nobody asked to end
	touched map[string]string // credential → what was asked of it that may end it or follow its version
	tasks   map[string]string // credential → task
	revoked map[string]bool   // revocations that were acknowledged
	ended   map[string]bool   // ends of tasks that were acknowledged
	tickets []string
	wrong   []string // answers that no client should ever get
}

func (b *book) note(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.touched == nil {
		b.touched, b.tasks, b.revoked, b.ended = map[string]string{}, map[string]string{}, map[string]bool{}, map[string]bool{}
	}
	fn()
}

// given notes a secret.
func (b *book) given(how string, asked time.Time, c client.IssuedCredential) {
	b.note(func() {
		if b.tasks[c.ID] == "" {
			b.alive = append(b.alive, c.ID)
			b.tasks[c.ID] = c.TaskID
		}
		if c.Ticket.Value != "" {
			b.tickets = append(b.tickets, c.Ticket.Value)
			return
		}
		b.grants = append(b.grants, grant{c.ID, c.Version, c.TaskID, c.Secret.Type, c.Secret.Fields, asked, time.Now(), how})
	})
}

// take gives somebody a credential to end or to refresh; it stays in the book, but nobody else gets it to end it.
func (b *book) take(n int, what string, remove bool) (id string) {
	b.note(func() {
		if len(b.alive) == 0 {
			return
		}
		i := n % len(b.alive)
		id = b.alive[i]
		b.touched[id] = what
		if remove {
			b.alive = append(b.alive[:i:i], b.alive[i+1:]...)
		}
	})
	return id
}

func (b *book) takeTicket() (ticket string) {
	b.note(func() {
		if n := len(b.tickets); n > 0 {
			ticket, b.tickets = b.tickets[n-1], b.tickets[:n-1]
		}
	})
	return ticket
}

// answer is what became of a call: a status, and a problem where it is one. A status of 0 is no answer.
type answer struct {
	status int
	code   string
	err    error
}

func (a answer) ok() bool { return a.status/100 == 2 }

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprint(a.status, " ", a.code)
}

// ended makes an answer of what the client library gives, and notes an answer that has not the contract's form.
func (p *replica) answered(response *http.Response, body []byte, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	a := answer{status: response.StatusCode}
	if !a.ok() {
		problem, err := problemOf(response, body)
		if err != nil {
			p.rig.book.note(func() { p.rig.book.wrong = append(p.rig.book.wrong, err.Error()) })
		}
		a.code = cmp.Or(problem.Code, "no code")
	}
	return a
}

func (p *replica) limit() (context.Context, context.CancelFunc) {
	return context.WithTimeout(p.rig.t.Context(), callLimit)
}

func awsRequest(task string) client.IssueRequest {
	return client.IssueRequest{TaskID: task, AgentID: "agent-1", Profile: "aws-crash", Scopes: []string{"read"}}
}

func poolRequest(task string) client.IssueRequest {
	return client.IssueRequest{TaskID: task, AgentID: "agent-1", Profile: "pool-crash", Scopes: []string{"use"}}
}

// issue asks for a credential, with an Idempotency-Key unless that is empty.
func (p *replica) issue(body client.IssueRequest, key string) answer {
	var k *keyed
	if key != "" {
		body.Metadata = map[string]string{"key": key}
		k = &keyed{Key: key, Body: body}
		p.rig.book.note(func() { p.rig.book.keys = append(p.rig.book.keys, k) })
	}
	a, _ := p.issueAs(body, k)
	return a
}

// issueAs sends a request, perhaps once more, and notes its answer.
func (p *replica) issueAs(body client.IssueRequest, k *keyed) (answer, *client.IssuedCredential) {
	var params client.IssueCredentialParams
	if k != nil {
		params.IdempotencyKey = &k.Key
	}
	ctx, cancel := p.limit()
	defer cancel()
	asked := time.Now()
	got, err := p.api.IssueCredentialWithResponse(ctx, &params, body)
	if err != nil {
		return answer{err: err}, nil
	}
	a := p.answered(got.HTTPResponse, got.Body, nil)
	if got.JSON201 != nil {
		p.rig.book.given("issue", asked, *got.JSON201)
	}
	if k != nil {
		p.rig.book.note(func() {
			if k.Refused = a.code; got.JSON201 != nil && k.Credential == "" {
				k.Credential, k.Version = got.JSON201.ID, got.JSON201.Version
			}
		})
	}
	return a, got.JSON201
}

func (p *replica) issueSeveral(task string) answer {
	ctx, cancel := p.limit()
	defer cancel()
	asked := time.Now()
	got, err := p.api.IssueTaskCredentialsWithResponse(ctx, task, nil, client.IssueSeveralRequest{
		AgentID: "agent-1", Credentials: []client.CredentialRequest{
			{Profile: "aws-crash", Scopes: []string{"read"}}, {Profile: "aws-crash", Scopes: []string{"read"}},
		},
	})
	if err != nil {
		return answer{err: err}
	}
	if got.JSON201 != nil {
		for _, c := range got.JSON201.Credentials {
			p.rig.book.given("issue several", asked, c)
		}
	}
	return p.answered(got.HTTPResponse, got.Body, nil)
}

func (p *replica) refresh(id, key string) answer {
	a, _ := p.refreshAs(id, key)
	return a
}

func (p *replica) refreshAs(id, key string) (answer, *client.IssuedCredential) {
	ctx, cancel := p.limit()
	defer cancel()
	asked := time.Now()
	var params client.RefreshCredentialParams
	if key != "" {
		params.IdempotencyKey = &key
	}
	got, err := p.api.RefreshCredentialWithResponse(ctx, id, &params, client.RefreshRequest{})
	if err != nil {
		return answer{err: err}, nil
	}
	if got.JSON201 != nil {
		p.rig.book.given("refresh", asked, *got.JSON201)
	}
	return p.answered(got.HTTPResponse, got.Body, nil), got.JSON201
}

func (p *replica) redeem(ticket string) answer {
	ctx, cancel := p.limit()
	defer cancel()
	asked := time.Now()
	got, err := p.api.RedeemTicketWithResponse(ctx, client.RedeemRequest{Ticket: ticket})
	if err != nil {
		return answer{err: err}
	}
	if got.JSON200 != nil {
		p.rig.book.given("redeem", asked, *got.JSON200)
	}
	return p.answered(got.HTTPResponse, got.Body, nil)
}

func (p *replica) resolve(id, task string) answer {
	ctx, cancel := p.limit()
	defer cancel()
	asked := time.Now()
	got, err := p.api.ResolveCredentialWithResponse(ctx, id, nil)
	if err != nil {
		return answer{err: err}
	}
	if c := got.JSON200; c != nil {
		p.rig.book.given("resolve", asked, client.IssuedCredential{ID: c.ID, Version: c.Version, TaskID: task, Secret: c.Secret})
	}
	return p.answered(got.HTTPResponse, got.Body, nil)
}

func (p *replica) revoke(id string) answer {
	ctx, cancel := p.limit()
	defer cancel()
	got, err := p.api.RevokeCredentialWithResponse(ctx, id, client.RevokeRequest{Reason: "the test ends it"})
	if err != nil {
		return answer{err: err}
	}
	a := p.answered(got.HTTPResponse, got.Body, nil)
	if a.ok() {
		p.rig.book.note(func() { p.rig.book.revoked[id] = true })
	}
	return a
}

func (p *replica) endTask(task string) answer {
	ctx, cancel := p.limit()
	defer cancel()
	got, err := p.api.EndTaskWithResponse(ctx, task, nil, client.EndTaskRequest{Outcome: "done"})
	if err != nil {
		return answer{err: err}
	}
	a := p.answered(got.HTTPResponse, got.Body, nil)
	if a.ok() {
		p.rig.book.note(func() { p.rig.book.ended[task] = true })
	}
	return a
}
