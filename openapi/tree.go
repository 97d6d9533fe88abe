package openapi

import (
	"bytes"
	"cmp"
	"context"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/broker"
)

// tree is the record's tree, for a caller who may read it.
func (s *server) tree(ctx context.Context) (*sequence.Log, broker.Caller, error) {
	caller := *callerOf(ctx)
	if !caller.ReadsAll() {
		return nil, caller, broker.Errorf(broker.CodeForbidden, "the role %s does not read the audit record", caller.Role)
	}
	if s.Tree == nil {
		return nil, caller, broker.Errorf(broker.CodeNotFound, "this service signs no checkpoints: its configuration has no audit.key")
	}
	return s.Tree, caller, nil
}

// GetAuditCheckpoint implements StrictServerInterface.
func (s *server) GetAuditCheckpoint(ctx context.Context, _ GetAuditCheckpointRequestObject) (GetAuditCheckpointResponseObject, error) {
	t, _, err := s.tree(ctx)
	if err != nil {
		return nil, err
	}
	c, err := t.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	return GetAuditCheckpoint200TextResponse(c.Note), nil
}

// ProveAuditInclusion implements StrictServerInterface.
func (s *server) ProveAuditInclusion(ctx context.Context, r ProveAuditInclusionRequestObject) (ProveAuditInclusionResponseObject, error) {
	t, caller, err := s.tree(ctx)
	if err != nil {
		return nil, err
	}
	id := value(r.Params.EventID)
	if (id == "") == (r.Params.Index == nil) {
		return nil, invalid(broker.Fault{Pointer: "/query/event_id", Reason: "give either event_id or index"})
	}
	in, err := t.Include(ctx, id, value(r.Params.Index), value(r.Params.TreeSize))
	read := asked(in.EventID, in.Index)
	if err != nil {
		if id != "" { // it may be a secret that somebody found and looks for
			id = audit.Hashed(id)
		}
		read = asked(id, value(r.Params.Index))
	}
	if err := s.proved(ctx, caller, read, err); err != nil {
		return nil, err
	}
	return ProveAuditInclusion200JSONResponse{
		EventID: in.EventID, Index: in.Index, TreeSize: in.Size, Root: in.Root.String(), LeafHash: in.Leaf.String(),
		Proof: hashes(in.Proof), Body: string(in.Body), Checkpoint: in.Signed.Note,
	}, nil
}

// proved puts on the record that a proof was asked for, whether there was one or not: who reads the record is on it, or does
// not read it. The error is that, or else the proof's own.
func (s *server) proved(ctx context.Context, caller broker.Caller, read map[string]string, err error) error {
	return cmp.Or(s.Broker.AuditRead(ctx, caller, read), err)
}

func asked(id string, index int64) map[string]string {
	m := map[string]string{"proof": "inclusion", "index": strconv.FormatInt(index, 10)}
	if id != "" {
		m["event_id"] = id
	}
	return m
}

// ProveAuditConsistency implements StrictServerInterface.
func (s *server) ProveAuditConsistency(ctx context.Context, r ProveAuditConsistencyRequestObject) (ProveAuditConsistencyResponseObject, error) {
	t, caller, err := s.tree(ctx)
	if err != nil {
		return nil, err
	}
	to := value(r.Params.To)
	p, err := t.Consist(ctx, r.Params.From, to)
	if err == nil {
		to = p.To
	}
	read := map[string]string{"proof": "consistency", "from": strconv.FormatInt(r.Params.From, 10)}
	if to > 0 { // without one it is the newest, which a proof that failed does not tell
		read["to"] = strconv.FormatInt(to, 10)
	}
	if err := s.proved(ctx, caller, read, err); err != nil {
		return nil, err
	}
	return ProveAuditConsistency200JSONResponse{
		From: p.From, To: p.To, FromRoot: p.FromRoot.String(), ToRoot: p.ToRoot.String(), Proof: hashes(p.Proof),
	}, nil
}

// GetAuditTile implements StrictServerInterface.
func (s *server) GetAuditTile(ctx context.Context, r GetAuditTileRequestObject) (GetAuditTileResponseObject, error) {
	t, _, err := s.tree(ctx)
	if err != nil {
		return nil, err
	}
	data, err := t.Tile(ctx, r.Level, r.Number)
	if err != nil {
		return nil, err
	}
	return GetAuditTile200ApplicationOctetStreamResponse{Body: bytes.NewReader(data), ContentLength: int64(len(data))}, nil
}

func hashes(list []tlog.Hash) []string {
	out := make([]string, len(list))
	for i, h := range list {
		out[i] = h.String()
	}
	return out
}
