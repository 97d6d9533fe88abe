package lifetest

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// caller calls the replicas by turns, or always the one it is pinned to.
type caller struct {
	*rig
	token string
	at    int // -1: by turns
}

// callLimit ends a call that hangs. It is far above what any call takes on a busy machine, so it is met only by a fault.
const callLimit = 2 * time.Minute

// longest is as long as the API lets anybody watch.
const longest = time.Minute

func (r *rig) as(name string) caller   { return caller{r, r.tokens[name], -1} }
func (r *rig) by(token string) caller  { return caller{r, token, -1} }
func (c caller) on(replica int) caller { c.at = replica % len(c.replicas); return c }

// reply is an answer: a problem's code, or the one body that is set.
type reply struct {
	status   int // 0: there was no answer
	code     broker.Code
	problem  client.Problem
	header   http.Header
	issued   client.IssuedCredential
	several  []client.IssuedCredential
	state    client.Credential
	task     client.Task
	resolved client.ResolvedCredential
	list     []client.Credential
	profiles []client.Profile
	advice   client.Advice
	key      client.PoolKey
	keys     []client.PoolKey
}

func (c caller) api() (*client.ClientWithResponses, context.Context, context.CancelFunc) {
	at := c.at
	if at < 0 {
		at = int(c.turn.Add(1)) % len(c.replicas)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	api, err := client.NewClientWithResponses(c.replicas[at].url, client.WithHTTPClient(c.http),
		client.WithRequestEditorFn(func(_ context.Context, q *http.Request) error {
			if c.token != "" {
				q.Header.Set("Authorization", "Bearer "+c.token)
			}
			return nil
		}))
	if err != nil {
		c.t.Error(err)
	}
	return api, ctx, cancel
}

// base reads what all answers have.
func (c caller) base(err error, response *http.Response, p *client.Problem) reply {
	c.t.Helper()
	if err != nil || response == nil {
		c.t.Logf("no answer: %v", err)
		return reply{code: "no answer"}
	}
	r := reply{status: response.StatusCode, header: response.Header}
	if p != nil {
		r.problem, r.code = *p, broker.Code(p.Code)
	}
	return r
}

func set[T any](into *T, from *T) {
	if from != nil {
		*into = *from
	}
}

func optional(key []string) *string {
	if len(key) == 0 || key[0] == "" {
		return nil
	}
	return &key[0]
}

// ask is a request for one credential.
func ask(profile, task string, edit ...func(*client.IssueRequest)) client.IssueRequest {
	q := client.IssueRequest{TaskID: task, AgentID: "agent-1", Profile: profile, Scopes: []string{"read"}}
	for _, e := range edit {
		e(&q)
	}
	return q
}

func ticket(q *client.IssueRequest)    { q.Delivery = client.IssueRequestDeliveryTicket }
func taskToken(q *client.IssueRequest) { q.TaskToken = true }
func under(parent string) func(*client.IssueRequest) {
	return func(q *client.IssueRequest) { q.ParentTaskID = parent }
}
func lasting(d time.Duration) func(*client.IssueRequest) {
	return func(q *client.IssueRequest) { q.TTLSeconds = int(d.Seconds()) }
}
func agent(id string) func(*client.IssueRequest) {
	return func(q *client.IssueRequest) { q.AgentID = id }
}

func (c caller) issue(q client.IssueRequest, key ...string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.IssueCredentialWithResponse(ctx, &client.IssueCredentialParams{IdempotencyKey: optional(key)}, q)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.issued, a.JSON201)
	return r
}

// batch asks for a credential of each profile.
func batch(profiles ...string) client.IssueSeveralRequest {
	q := client.IssueSeveralRequest{AgentID: "agent-1"}
	for _, p := range profiles {
		q.Credentials = append(q.Credentials, client.CredentialRequest{Profile: p, Scopes: []string{"read"}})
	}
	return q
}

func (c caller) issueAll(task string, q client.IssueSeveralRequest, key ...string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.IssueTaskCredentialsWithResponse(ctx, task, &client.IssueTaskCredentialsParams{IdempotencyKey: optional(key)}, q)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	if a.JSON201 != nil {
		r.several = a.JSON201.Credentials
	}
	return r
}

func (c caller) get(id string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.GetCredentialWithResponse(ctx, id)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.state, a.JSON200)
	return r
}

func (c caller) find(p client.ListCredentialsParams) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.ListCredentialsWithResponse(ctx, &p)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	if a.JSON200 != nil {
		r.list = a.JSON200.Credentials
	}
	return r
}

func (c caller) offers() reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.ListProfilesWithResponse(ctx)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	if a.JSON200 != nil {
		r.profiles = a.JSON200.Profiles
	}
	return r
}

func (c caller) history() reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.ListAuditEventsWithResponse(ctx, &client.ListAuditEventsParams{})
	if err != nil {
		return c.base(err, nil, nil)
	}
	return c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
}

// refresh asks for the version after seen; zero: after whatever is current.
func (c caller) refresh(id string, seen int, key ...string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.RefreshCredentialWithResponse(ctx, id, &client.RefreshCredentialParams{IdempotencyKey: optional(key)}, client.RefreshRequest{Version: seen})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.issued, a.JSON201)
	return r
}

func (c caller) revoke(id string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.RevokeCredentialWithResponse(ctx, id, client.RevokeRequest{Reason: "test"})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.state, a.JSON200)
	set(&r.state, a.JSON202)
	return r
}

func (c caller) resolve(id string, etag ...string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.ResolveCredentialWithResponse(ctx, id, &client.ResolveCredentialParams{IfNoneMatch: optional(etag)})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.resolved, a.JSON200)
	return r
}

func (c caller) watch(id string, seen int, wait time.Duration) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	text := strconv.Itoa(int(wait.Seconds())) + "s"
	a, err := api.WatchCredentialWithResponse(ctx, id, &client.WatchCredentialParams{Version: seen, Wait: &text})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.state, a.JSON200)
	return r
}

func (c caller) redeem(value string) reply {
	c.t.Helper()
	c.token = ""
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.RedeemTicketWithResponse(ctx, client.RedeemRequest{Ticket: value})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.issued, a.JSON200)
	return r
}

func (c caller) lookTask(id string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.GetTaskWithResponse(ctx, id, nil)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.task, a.JSON200)
	return r
}

func (c caller) endTask(id string) reply { return c.endTaskOf("", id) }

// endTaskOf names the caller that the task belongs to, unless owner is empty.
func (c caller) endTaskOf(owner, id string) reply {
	c.t.Helper()
	params := &client.EndTaskParams{}
	if owner != "" {
		params.Caller = &owner
	}
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.EndTaskWithResponse(ctx, id, params, client.EndTaskRequest{Outcome: "done"})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.task, a.JSON200)
	set(&r.task, a.JSON202)
	return r
}

// want expects a status, or a problem of that code.
func (r reply) want(t tb, what any) reply {
	t.Helper()
	switch w := what.(type) {
	case int:
		if r.status != w {
			t.Fatalf("answered %d %s (%s %+v), want %d", r.status, r.code, r.problem.Detail, r.problem.Errors, w)
		}
	case broker.Code:
		if r.code != w || r.status != w.Status() {
			t.Errorf("answered %d %s (%s %+v), want %s", r.status, r.code, r.problem.Detail, r.problem.Errors, w)
		}
	}
	return r
}

// secretOf is the field by which a secret is told from others.
func secretOf(s client.Secret) string { return s.Fields["session_token"] + s.Fields["api_key"] }

// mustIssue gets a credential.
func (r *rig) mustIssue(q client.IssueRequest, key ...string) client.IssuedCredential {
	r.t.Helper()
	return r.as("orch").issue(q, key...).want(r.t, http.StatusCreated).issued
}
