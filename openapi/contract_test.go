package openapi_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

func readDocument(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func readSpec(t testing.TB) *openapi3.T {
	t.Helper()
	spec, err := openapi3.NewLoader().LoadFromData([]byte(readDocument(t)))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestDocumentIsValid(t *testing.T) {
	t.Parallel()
	if err := readSpec(t).Validate(context.Background()); err != nil {
		t.Error(err)
	}
}

// outside are the routes that stand beside the contract.
var outside = []string{"GET /livez", "GET /metrics", "GET /openapi.json", "GET /openapi.yaml", "GET /readyz"}

// The handler serves the contract's calls, all of them and no other.
func TestRoutesAreTheContracts(t *testing.T) {
	t.Parallel()
	b, err := broker.New(broker.Config{Ledger: noLedger{}, Sealer: noSealer{}, Policy: noPolicy{}})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := openapi.New(openapi.Config{
		Broker: b, Audit: audit.NewLog(nil), Callers: panics{}, Ready: func(context.Context) error { return nil },
		Logger: slog.New(slog.DiscardHandler), Metrics: http.NotFoundHandler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	var served []string
	err = chi.Walk(handler.(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		served = append(served, method+" "+route)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	promised := slices.Clone(outside)
	for path, item := range readSpec(t).Paths.Map() {
		for method := range item.Operations() {
			promised = append(promised, method+" "+path)
		}
	}
	slices.Sort(served)
	slices.Sort(promised)
	if diff := cmp.Diff(promised, served); diff != "" {
		t.Errorf("promised (-) and served (+): %s", diff)
	}
}

type (
	noLedger struct{ broker.Ledger }
	noSealer struct{ broker.Sealer }
	noPolicy struct{ broker.Policy }
)

// Without one of its parts there is no handler, rather than one that fails when it is asked.
func TestNewWantsItsParts(t *testing.T) {
	t.Parallel()
	b, err := broker.New(broker.Config{Ledger: noLedger{}, Sealer: noSealer{}, Policy: noPolicy{}})
	if err != nil {
		t.Fatal(err)
	}
	full := openapi.Config{
		Broker: b, Audit: audit.NewLog(nil), Callers: panics{}, Ready: func(context.Context) error { return nil }, Logger: slog.New(slog.DiscardHandler),
	}
	if _, err := openapi.New(full); err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeFor[openapi.Config]().NumField() {
		cfg := full
		field := reflect.ValueOf(&cfg).Elem().Field(i)
		if field.IsZero() {
			continue // optional
		}
		field.SetZero()
		if _, err := openapi.New(cfg); err == nil {
			t.Errorf("made without %s", reflect.TypeFor[openapi.Config]().Field(i).Name)
		}
	}
}

// Every call is behind a token, but those that say so, and asks for one before it looks at anything else.
func TestEveryCallWantsAToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	spec := readSpec(t)
	for path, item := range spec.Paths.Map() {
		for method, operation := range item.Operations() {
			if operation.Security != nil && len(*operation.Security) == 0 {
				continue
			}
			path = strings.NewReplacer("{id}", string(broker.NewCredentialID()), "{task_id}", "t").Replace(path)
			a.want(a.call("", method, path, "{}"), broker.CodeUnauthenticated)
			a.want(a.call("", method, path, "not even JSON", "Content-Type", "text/plain"), broker.CodeUnauthenticated)
		}
	}
}

// What is stored as an event and what the contract calls one have the same fields, for each kind of event: an auditor's
// client, generated from the contract, misses nothing and stumbles over nothing.
func TestAuditEventsAreTheContracts(t *testing.T) {
	t.Parallel()
	schema := readSpec(t).Components.Schemas["AuditEvent"].Value
	files, err := os.ReadDir("../audit/testdata")
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	for _, file := range files {
		name, golden := strings.CutSuffix(file.Name(), ".golden")
		if !golden {
			continue
		}
		text, err := os.ReadFile("../audit/testdata/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		var e openapi.AuditEvent
		strict(t, string(text), &e)
		var stored, shown map[string]any
		again, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &stored); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &shown); err != nil {
			t.Fatal(err)
		}
		sameTimes(stored)
		sameTimes(shown)
		if diff := cmp.Diff(stored, shown); diff != "" {
			t.Errorf("%s, stored (-) and shown (+): %s", name, diff)
		}
		if name == "least" {
			continue // a type that there is not
		}
		if err := schema.VisitJSON(stored); err != nil {
			t.Errorf("%s is not what the contract calls an event: %v", name, err)
		}
		for field := range stored {
			recorded[field] = true
		}
	}
	for field := range schema.Properties {
		if !recorded[field] {
			t.Errorf("no kind of event has %s", field)
		}
	}
}

// sameTimes writes each time in one way: the record's six digits and JSON's shortest form mean the same.
func sameTimes(v map[string]any) {
	for k, x := range v {
		switch x := x.(type) {
		case string:
			if at, err := time.Parse(time.RFC3339Nano, x); err == nil {
				v[k] = at.UTC().Format(time.RFC3339Nano)
			}
		case map[string]any:
			sameTimes(x)
		}
	}
}

// The states and results that the domain has are the ones that the contract lists.
func TestEnumsAreTheDomains(t *testing.T) {
	t.Parallel()
	schemas := readSpec(t).Components.Schemas
	list := func(schema *openapi3.SchemaRef) []string {
		var out []string
		for _, v := range schema.Value.Enum {
			out = append(out, v.(string))
		}
		slices.Sort(out)
		return out
	}
	var states []string
	for _, s := range broker.States() {
		states = append(states, string(s))
	}
	slices.Sort(states)
	if diff := cmp.Diff(states, list(schemas["Status"])); diff != "" {
		t.Errorf("states: %s", diff)
	}
	results := []string{string(broker.ResultDenied), string(broker.ResultDestroyed), string(broker.ResultExpires), string(broker.ResultReleased)}
	if diff := cmp.Diff(results, list(schemas["Revocation"].Value.Properties["result"])); diff != "" {
		t.Errorf("results: %s", diff)
	}
	modes := []string{string(broker.RevokeDeny), string(broker.RevokeDestroy), string(broker.RevokeNone)}
	if diff := cmp.Diff(modes, list(schemas["Revocation"].Value.Properties["mode"])); diff != "" {
		t.Errorf("modes: %s", diff)
	}
}

// The limits that the contract states are the ones that the domain holds.
func TestLimitsAreTheDomains(t *testing.T) {
	t.Parallel()
	schemas := readSpec(t).Components.Schemas
	id := schemas["ID"].Value
	if *id.MaxLength != broker.MaxIDLength {
		t.Errorf("an id has up to %d characters, in the domain %d", *id.MaxLength, broker.MaxIDLength)
	}
	metadata := schemas["IssueRequest"].Value.Properties["metadata"].Value
	if *metadata.MaxProps != broker.MaxMetadataEntries || *metadata.AdditionalProperties.Schema.Value.MaxLength != broker.MaxMetadataValue {
		t.Error("metadata has other limits in the domain")
	}
}
