package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// BenchmarkIssue is a credential from request to answer over HTTP, with the sandbox's STS in the same process: its share
// of the CPU counts too. Run it by `make bench`.
func BenchmarkIssue(b *testing.B) {
	temp, err := os.MkdirTemp("", "taskpass-bench-") // PostgreSQL cannot work below b.TempDir as root
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(temp) })
	if err := os.Chmod(temp, 0o711); err != nil {
		b.Fatal(err)
	}
	s, err := startStack(context.Background(), stackConfig{
		dataDir: filepath.Join(temp, "data"), listen: "127.0.0.1:0", logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.close(); err != nil {
			b.Error(err)
		}
	})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	var n atomic.Int64
	b.SetParallelism(16)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			body := fmt.Sprintf(`{"task_id":"task-%d","agent_id":"agent-1","profile":"aws-demo","scopes":["read:content"]}`, n.Add(1))
			r, _ := http.NewRequest(http.MethodPost, s.BaseURL+"/v1/credentials", bytes.NewBufferString(body))
			r.Header.Set("Authorization", "Bearer "+s.Tokens["orchestrator"].Reveal())
			r.Header.Set("Content-Type", "application/json")
			answer, err := client.Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusCreated {
				b.Error(answer.Status)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "issues/s")
}
