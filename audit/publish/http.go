package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// HTTP posts notes to a URL as text/plain. Any 2xx means that the note is kept, unless it is an HTML page, which a login or
// a gateway wrote.
type HTTP struct {
	URL           string
	Authorization broker.Secret // the whole header's value; empty: none is sent
	Client        *http.Client  // it must not follow redirects: see NewClient
}

// NewClient is an HTTP client for hooks: it follows no redirect, which could lead anywhere.
func NewClient() *http.Client {
	return &http.Client{
		Transport:     http.DefaultTransport.(*http.Transport).Clone(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Put implements Destination. No error repeats the URL or the answer's text: either may bear a secret.
func (h HTTP) Put(ctx context.Context, c tree.Checkpoint) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, strings.NewReader(c.Note))
	if err != nil {
		return errors.New("the URL is not valid")
	}
	r.Header.Set("Content-Type", "text/plain; charset=utf-8")
	if !h.Authorization.Empty() {
		r.Header.Set("Authorization", h.Authorization.Reveal())
	}
	answer, err := h.Client.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return err
	}
	defer answer.Body.Close()
	// All of it, so that the connection can be used again. How it begins is enough to know a page.
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	said := broker.VendorAnswer{Vendor: "the hook", Action: "hook", Status: answer.StatusCode}
	if id := answer.Header.Get("X-Request-Id"); broker.ValidID(id) {
		said.RequestID = id
	}
	switch {
	case answer.StatusCode/100 != 2:
		return refusal{fmt.Sprintf("answered %d", answer.StatusCode), said}
	case err != nil:
		return refusal{"the answer broke off", said}
	case broker.IsPage(answer.Header.Get("Content-Type"), body):
		return refusal{fmt.Sprintf("answered %d with an HTML page, which counts as a gateway's: the operator should check the URL, and what is on the way to it",
			answer.StatusCode), said}
	}
	return nil
}
