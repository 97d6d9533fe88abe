package broker_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

// A key that is passed over because of its store has the store's answer in the log, once.
func TestKeyProblemsLogTheStoresAnswer(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	p := broker.KeyProblems{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	err := broker.Errorf(broker.CodeUpstreamError, "Vault failed").Because(broker.VendorAnswer{Vendor: "Vault", Action: "kv.read", Status: 503, RequestID: "r-1"})
	for range 2 {
		p.Set(t.Context(), "pool", map[string]error{"k": err})
	}
	const want = "vendor.name=Vault vendor.action=kv.read vendor.status=503"
	if text := log.String(); strings.Count(text, want) != 1 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "r-1") {
		t.Error(text)
	}
	if p.Known()["k"] != "Vault failed" {
		t.Errorf("%v", p.Known())
	}
}
