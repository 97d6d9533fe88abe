package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/sandbox"
)

const (
	fleetPool = "fleet"
	fleetKey  = "shared"
	fleetSize = 3
)

// rotation shows a key that three agents hold being rotated while they work: nobody is left with a dead one.
func (s *story) rotation(ctx context.Context) error {
	s.chapter("A key that %d agents share is rotated while they work", fleetSize)
	ops, err := s.client("operator")
	if err != nil {
		return err
	}
	old, next := s.stack.Sandbox.ModelKeys[sandbox.PoolKeys], s.stack.Sandbox.ModelKeys[sandbox.PoolKeys+1]
	added, err := ops.AddPoolKeyWithResponse(ctx, fleetPool, client.NewPoolKey{Name: fleetKey, Value: old})
	if err != nil {
		return err
	}
	if added.JSON201 == nil {
		return asProblem(added.StatusCode(), added.Body)
	}
	var fleet []*client.IssuedCredential
	for i := range fleetSize {
		issued, err := s.issue(ctx, client.IssueRequest{
			TaskID: fmt.Sprintf("fleet-%d", i+1), AgentID: fmt.Sprintf("agent-%d", i+1), Profile: "fleet-demo", Scopes: []string{"call:model"},
		})
		if err != nil {
			return err
		}
		fleet = append(fleet, issued)
	}
	rotated, err := ops.RotatePoolKeyWithResponse(ctx, fleetPool, fleetKey, client.RotatePoolKey{Value: next})
	if err != nil {
		return err
	}
	if rotated.JSON202 == nil {
		return asProblem(rotated.StatusCode(), rotated.Body)
	}
	s.say("the operator hands in the new value; both work at the *sandbox* model API")
	return s.converge(ctx, ops, fleet, old)
}

// converge plays the agents: each watches, resolves and works on.
func (s *story) converge(ctx context.Context, ops *client.ClientWithResponses, fleet []*client.IssuedCredential, old string) error {
	api, err := s.client("orchestrator")
	if err != nil {
		return err
	}
	wait := "20s"
	for i, c := range fleet {
		told, err := api.WatchCredentialWithResponse(ctx, c.ID, &client.WatchCredentialParams{Version: c.Version, Wait: &wait})
		if err != nil {
			return err
		}
		if told.JSON200 == nil || told.JSON200.Version != c.Version+1 {
			return fmt.Errorf("agent %d was not told of a newer version: %d", i+1, told.StatusCode())
		}
		resolved, err := api.ResolveCredentialWithResponse(ctx, c.ID, nil)
		if err != nil {
			return err
		}
		if resolved.JSON200 == nil {
			return asProblem(resolved.StatusCode(), resolved.Body)
		}
		key := resolved.JSON200.Secret.Env["MODEL_API_KEY"]
		if key == old {
			return fmt.Errorf("agent %d was given the old value", i+1)
		}
		if err := callModel(ctx, s.stack.Sandbox.ModelURL, key); err != nil {
			return err
		}
		s.say("agent-%d is told of version %d, resolves it, and works on: %d of %d moved", i+1, resolved.JSON200.Version, i+1, len(fleet))
	}
	if err := s.settled(ctx, ops); err != nil {
		return err
	}
	if err := s.stack.Sandbox.Model.SetActive(old, false); err != nil {
		return err
	}
	s.say("all have moved: the old value is ended at the vendor, and nobody notices")
	return nil
}

// settled waits until the rotation is over.
func (s *story) settled(ctx context.Context, ops *client.ClientWithResponses) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := ops.ListPoolKeysWithResponse(ctx, fleetPool)
		if err != nil {
			return err
		}
		if list.JSON200 == nil || len(list.JSON200.Keys) != 1 {
			return asProblem(list.StatusCode(), list.Body)
		}
		if list.JSON200.Keys[0].Rotation.ID == "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("the rotation does not end though all have moved")
		}
	}
}
