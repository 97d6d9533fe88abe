package model_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/providers/sandbox/model"
)

func send(t *testing.T, s *model.Server, header, value, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/v1/messages", strings.NewReader(body))
	if header != "" {
		r.Header.Set(header, value)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	out, _ := io.ReadAll(w.Result().Body)
	return w.Code, string(out)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s, err := model.New(model.Config{Keys: []model.Key{{ID: "one", Secret: "sk-1"}, {ID: "two", Secret: "sk-2"}}})
	if err != nil {
		t.Fatal(err)
	}
	const hello = `{"model":"m","messages":[{"role":"user","content":"hello"}]}`
	const blocks = `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hello"}]}]}`
	for _, tc := range []struct {
		header, value, body string
		status              int
		want                string
	}{
		{"X-Api-Key", "sk-1", hello, 200, "echo: hello"},
		{"Authorization", "Bearer sk-1", blocks, 200, "echo: hello"},
		{"X-Api-Key", "sk-3", hello, 401, "authentication_error"},
		{"X-Api-Key", "one", hello, 401, "authentication_error"},
		{"", "", hello, 401, "authentication_error"},
		{"X-Api-Key", "sk-1", "{", 400, "invalid_request_error"},
	} {
		status, body := send(t, s, tc.header, tc.value, tc.body)
		if status != tc.status || !strings.Contains(body, tc.want) {
			t.Errorf("%s %s: %d %s", tc.header, tc.value, status, body)
		}
	}
	if err := s.SetActive("one", false); err != nil {
		t.Fatal(err)
	}
	if status, _ := send(t, s, "X-Api-Key", "sk-1", hello); status != 401 {
		t.Errorf("an inactive key: %d", status)
	}
	if status, _ := send(t, s, "X-Api-Key", "sk-2", hello); status != 200 {
		t.Errorf("the other key: %d", status)
	}
	if err := s.SetActive("sk-1", true); err != nil {
		t.Fatal(err)
	}
	if status, _ := send(t, s, "X-Api-Key", "sk-1", hello); status != 200 {
		t.Errorf("a key turned on again: %d", status)
	}
	if a, b := s.Calls("one"), s.Calls("sk-2"); a != 4 || b != 1 {
		t.Errorf("calls: %d and %d", a, b)
	}
	if err := s.SetActive("none", true); err == nil {
		t.Error("an unknown key was turned on")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]model.Key{
		{{ID: "a"}}, {{Secret: "a"}}, {{ID: "a", Secret: "1"}, {ID: "b", Secret: "1"}}, {{ID: "a", Secret: "1"}, {ID: "a", Secret: "2"}},
	} {
		if _, err := model.New(model.Config{Keys: keys}); err == nil {
			t.Errorf("accepted %d keys", len(keys))
		}
	}
}
