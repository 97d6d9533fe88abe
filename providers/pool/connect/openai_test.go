package connect_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/openai"
)

func TestOpenAIKeyOfATask(t *testing.T) {
	t.Parallel()
	r := newOpenAI(t, func(c *connect.OpenAI) { c.KeyLifetime = time.Hour })
	value, id, trace, err := r.maker.Make(t.Context(), "VERSION1")
	if err != nil || r.chat(t, value) != 200 {
		t.Fatal("the key does not work:", err)
	}
	sibling, _, _, err := r.maker.Make(t.Context(), "VERSION10")
	if err != nil {
		t.Fatal(err)
	}
	made := r.Accounts()[0]
	want := map[string]string{"openai_project": project, "service_account_id": made.ID, "api_key_id": made.KeyID}
	if id != made.ID || made.Name != "VERSION1" || !made.Expires.Equal(now.Add(time.Hour)) || !cmp.Equal(trace, want) {
		t.Errorf("%s, %v, %+v", id, trace, made)
	}
	got, err := r.maker.End(t.Context(), "VERSION1")
	if err != nil || got != (broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now.UTC().Add(time.Minute), Basis: "deleted"}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if r.chat(t, value) != 401 || r.chat(t, sibling) != 200 {
		t.Error("the key works on, or its sibling does not")
	}
	if got, err := r.maker.End(t.Context(), "VERSION1"); err != nil || got.Result != broker.ResultDestroyed || got.Basis != "not_listed" {
		t.Errorf("ended already: %+v, %v", got, err)
	}
	if mode, lag := r.maker.Revoke(); mode != broker.RevokeDestroy || lag != time.Minute {
		t.Error(mode, lag)
	}
}

// A reply was lost, so the name is all that is known: among hundreds, and twice if it was asked twice.
func TestOpenAILostCreateIsFoundByItsName(t *testing.T) {
	t.Parallel()
	r := newOpenAI(t)
	for i := range 230 {
		if _, _, _, err := r.maker.Make(t.Context(), fmt.Sprintf("other-%d", i)); err != nil {
			t.Fatal(err)
		}
		if i == 0 || i == 200 {
			r.Inject(fault.Fault{Action: openai.Create, Kind: fault.DropReply})
			_, _, _, err := r.maker.Make(t.Context(), "lost")
			if wantCode(t, err, broker.CodeUpstreamError); errors.Is(err, broker.ErrNotMinted) {
				t.Fatal("a lost reply is taken for proof that nothing was made")
			}
		}
	}
	if len(r.Accounts()) != 232 {
		t.Fatal(len(r.Accounts()))
	}
	got, err := r.maker.End(t.Context(), "lost")
	if err != nil || got.Basis != "deleted" || len(r.Accounts()) != 230 || r.Queue.Calls(openai.Delete) != 2 || r.Queue.Calls(openai.List) != 3 {
		t.Errorf("%+v, %v; %d accounts are left", got, err, len(r.Accounts()))
	}
}

func TestOpenAIMakeFails(t *testing.T) {
	t.Parallel()
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newOpenAI(t)
			f := c.fault
			f.Action = openai.Create
			r.Inject(f)
			value, id, trace, err := r.maker.Make(t.Context(), "VERSION1")
			e := wantCode(t, err, c.code)
			if e.RetryAfter != c.retryAfter || !value.Empty() || id != "" || trace != nil {
				t.Errorf("retry after %s; %q %v", e.RetryAfter, id, trace)
			}
			if errors.Is(err, broker.ErrNotMinted) == c.maybeMade {
				t.Errorf("said not to be minted: %t", !c.maybeMade)
			}
		})
	}
}

func TestOpenAIEndFails(t *testing.T) {
	t.Parallel()
	for _, c := range faults {
		for _, action := range []string{openai.List, openai.Delete} {
			if c.name == "404" && action == openai.Delete || c.fault.Kind == fault.DropReply && action == openai.List {
				continue // see below; net/http itself asks for a list again
			}
			t.Run(c.name+" of "+action, func(t *testing.T) {
				t.Parallel()
				r := newOpenAI(t)
				value, _, _, err := r.maker.Make(t.Context(), "VERSION1")
				if err != nil {
					t.Fatal(err)
				}
				f := c.fault
				f.Action = action
				r.Inject(f)
				got, err := r.maker.End(t.Context(), "VERSION1")
				if e := wantCode(t, err, c.code); e.RetryAfter != c.retryAfter || got.Result != broker.ResultNone {
					t.Errorf("retry after %s, %+v", e.RetryAfter, got)
				}
				if got, err := r.maker.End(t.Context(), "VERSION1"); err != nil || got.Result != broker.ResultDestroyed || r.chat(t, value) != 401 {
					t.Errorf("asked again: %+v, %v", got, err)
				}
			})
		}
	}
}

// "Not found" of an account that is still listed is no proof.
func TestOpenAINotFoundIsNoProof(t *testing.T) {
	t.Parallel()
	r := newOpenAI(t)
	if _, _, _, err := r.maker.Make(t.Context(), "VERSION1"); err != nil {
		t.Fatal(err)
	}
	r.Inject(fault.Fault{Action: openai.Delete, Kind: fault.Refuse, Status: 404})
	_, err := r.maker.End(t.Context(), "VERSION1")
	wantCode(t, err, broker.CodeUpstreamError)
	for _, body := range []string{
		`{"object":"organization.project.service_account.deleted","id":"x","deleted":true}`, `{"id":"` + r.Accounts()[0].ID + `","deleted":false}`,
	} {
		r.Inject(fault.Fault{Action: openai.Delete, Kind: fault.Verbatim, Status: 200, Body: body})
		_, err = r.maker.End(t.Context(), "VERSION1")
		wantCode(t, err, broker.CodeUpstreamError)
	}
	// A list that goes in circles, or says too little, is none.
	for _, body := range []string{`{"data":[],"has_more":true,"last_id":""}`, `{"data":[]}`, `{"has_more":false}`} {
		r.Inject(fault.Fault{Action: openai.List, Kind: fault.Verbatim, Status: 200, Body: body})
		_, err = r.maker.End(t.Context(), "VERSION1")
		wantCode(t, err, broker.CodeUpstreamError)
	}
	if len(r.Accounts()) != 1 {
		t.Error("the account is gone after all")
	}
}

// Many ends at once move each other's pages. None may claim what it did not do, and asking again gets there.
func TestOpenAIEndsAtOnce(t *testing.T) {
	t.Parallel()
	r := newOpenAI(t)
	const tasks = 120
	for i := range tasks {
		if _, _, _, err := r.maker.Make(t.Context(), fmt.Sprint("v", i)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range tasks {
		wg.Go(func() {
			name := fmt.Sprint("v", i)
			for {
				got, err := r.maker.End(t.Context(), name)
				if err != nil {
					if e := broker.AsError(err); e.Code != broker.CodeUpstreamError {
						t.Error(err)
						return
					}
					continue
				}
				for _, a := range r.Accounts() {
					if a.Name == name {
						t.Errorf("%s is said to be %+v and is there", name, got)
					}
				}
				return
			}
		})
	}
	wg.Wait()
	if n := len(r.Accounts()); n != 0 {
		t.Errorf("%d accounts are left", n)
	}
}

func TestOpenAITimeOut(t *testing.T) {
	t.Parallel()
	r := newOpenAI(t)
	r.Inject(fault.Fault{Action: openai.Create, Kind: fault.Hang})
	_, _, _, err := r.maker.Make(cancelled(t, r.Queue, openai.Create, 1), "VERSION1")
	if wantCode(t, err, broker.CodeUpstreamTimeout); errors.Is(err, broker.ErrNotMinted) {
		t.Error("a time-out is taken for proof that nothing was made")
	}
}

// What was never sent was never minted.
func TestOpenAINothingSent(t *testing.T) {
	t.Parallel()
	url, wire := serve(t, nil)
	cfg := connect.OpenAI{AdminKey: providertest.SecretFile(t, openaiAdmin), Project: project, Endpoint: url}
	wire.Client.Transport = nowhere{}
	maker, err := connect.OpenMaker(connect.Config{OpenAI: &cfg}, wire)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = maker.Make(t.Context(), "VERSION1")
	if wantCode(t, err, broker.CodeUpstreamError); !errors.Is(err, broker.ErrNotMinted) {
		t.Error(err)
	}
	_, _, _, err = maker.Make(t.Context(), "no name\n")
	if wantCode(t, err, broker.CodeInvalidRequest); !errors.Is(err, broker.ErrNotMinted) {
		t.Error(err)
	}
	rewrite(t, cfg.AdminKey, "")
	_, _, _, err = maker.Make(t.Context(), "VERSION1")
	if wantCode(t, err, broker.CodeUpstreamRefused); !errors.Is(err, broker.ErrNotMinted) {
		t.Error(err)
	}
}
