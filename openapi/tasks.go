package openapi

import (
	"context"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// GetTask implements StrictServerInterface.
func (s *server) GetTask(ctx context.Context, r GetTaskRequestObject) (GetTaskResponseObject, error) {
	view, err := s.Broker.Task(ctx, *callerOf(ctx), r.TaskID, value(r.Params.Caller))
	if err != nil {
		return nil, err
	}
	return GetTask200JSONResponse(s.task(view)), nil
}

// EndTask implements StrictServerInterface.
func (s *server) EndTask(ctx context.Context, r EndTaskRequestObject) (EndTaskResponseObject, error) {
	outcome := ""
	if r.Body != nil {
		outcome = r.Body.Outcome
	}
	view, err := s.Broker.EndTask(ctx, *callerOf(ctx), r.TaskID, value(r.Params.Caller), outcome)
	if err != nil {
		return nil, err
	}
	if view.Pending > 0 {
		return EndTask202JSONResponse(s.task(view)), nil
	}
	return EndTask200JSONResponse(s.task(view)), nil
}

// IssueTaskCredentials implements StrictServerInterface.
func (s *server) IssueTaskCredentials(ctx context.Context, r IssueTaskCredentialsRequestObject) (IssueTaskCredentialsResponseObject, error) {
	requests := make([]broker.Request, len(r.Body.Credentials))
	for i, c := range r.Body.Credentials {
		requests[i] = broker.Request{
			TaskID: r.TaskID, AgentID: r.Body.AgentID, Profile: c.Profile, Scopes: c.Scopes,
			TTL: time.Duration(c.TTLSeconds) * time.Second, Metadata: c.Metadata,
			ParentTaskID: r.Body.ParentTaskID, TaskToken: r.Body.TaskToken, Ticket: r.Body.Delivery == IssueSeveralRequestDeliveryTicket,
		}
	}
	list, err := s.Broker.IssueAll(ctx, *callerOf(ctx), requests, value(r.Params.IdempotencyKey))
	if err != nil {
		return nil, err
	}
	out := IssueTaskCredentials201JSONResponse{Credentials: make([]IssuedCredential, len(list))}
	for i, issued := range list {
		out.Credentials[i] = s.issued(issued)
	}
	return out, nil
}

func (s *server) task(view broker.TaskView) Task {
	t := Task{
		TaskID: view.ID, Caller: view.Caller, ParentTaskID: view.Parent,
		Status: Open, EndedAt: view.EndedAt, Outcome: view.Outcome,
		Credentials: make([]Credential, 0, len(view.Credentials)), HasMore: view.HasMore,
	}
	if !view.EndedAt.IsZero() {
		t.Status, t.Pending = Ended, &view.Pending
	}
	for _, c := range view.Credentials {
		t.Credentials = append(t.Credentials, s.credential(c))
	}
	return t
}
