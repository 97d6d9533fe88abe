package openapi_test

import (
	"net/http"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

// What operators see of a key is what they said of it, and never its value.
func TestPoolKeys(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	at := "/v1/pools/models/keys"
	got := a.call("ops", "POST", at, `{"name":"sealed","value":"sk-1","vendor_id":"key_1","scopes":["call"],"labels":{"tier":"prod"}}`)
	if got.status != http.StatusCreated || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("added: %d %s, %q", got.status, got.body, got.header.Get("Cache-Control"))
	}
	list := a.call("aud", "GET", at, "")
	var page openapi.PoolKeyList
	strict(t, list.body, &page)
	if len(page.Keys) != 3 {
		t.Fatalf("%d keys: %s", len(page.Keys), list.body)
	}
	for _, k := range page.Keys {
		want := openapi.PoolKey{Name: k.Name, State: openapi.Available, Source: openapi.Reference}
		if k.Name == "sealed" {
			want.Source, want.VendorID = openapi.Sealed, "key_1"
			if len(k.Scopes) != 1 || k.Labels["tier"] != "prod" || k.Fingerprint == "" || k.ChangedAt.IsZero() {
				t.Errorf("%+v", k)
			}
		}
		if k.State != want.State || k.Source != want.Source || k.VendorID != want.VendorID {
			t.Errorf("%+v, want %+v", k, want)
		}
	}
	for _, c := range []struct {
		path, body, pointer string
		code                broker.Code
	}{
		{"", `{"name":"x"}`, "/value", broker.CodeInvalidRequest},
		{"", `{"value":"x"}`, "/name", broker.CodeInvalidRequest},
		{"", `{"name":"a b","value":"x"}`, "/name", broker.CodeInvalidRequest},
		{"", `{"name":"x","value":"x","labels":{"a":"b c"}}`, "/labels/a", broker.CodeInvalidRequest},
		{"/key-1/rotate", `{"value":"x"}`, "", broker.CodeConflict},
		{"/sealed/rotate", `{"value":"x","deadline_seconds":59}`, "/deadline_seconds", broker.CodeInvalidRequest},
		{"/sealed/explode", `{}`, "/path/action", broker.CodeInvalidRequest},
		{"/nobody/retire", `{}`, "", broker.CodeNotFound},
		{"", `{"name":"key-1","value":"x"}`, "", broker.CodeConflict},
	} {
		p := a.want(a.call("ops", "POST", at+c.path, c.body), c.code)
		pointer := ""
		if len(p.Errors) > 0 {
			pointer = p.Errors[0].Pointer
		}
		if pointer != c.pointer {
			t.Errorf("%s %s: points at %q, want %q", c.path, c.body, pointer, c.pointer)
		}
	}
	if list := a.audit("type=key.added").Events; len(list) != 1 || list[0].Trace["key"] != "sealed" || list[0].Caller.Name != "ops" {
		t.Errorf("%+v", list)
	}
}
