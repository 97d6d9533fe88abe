package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// service says where a running broker is, and who asks. A token belongs into a file or the environment.
type service struct {
	URL       string `name:"url" env:"TASKPASS_URL" default:"http://127.0.0.1:8080" help:"The broker's address."`
	Token     string `env:"TASKPASS_TOKEN" help:"An operator's token."`
	TokenFile string `type:"path" help:"A file that holds it."`
}

func (s service) client() (*client.ClientWithResponses, error) {
	token := broker.NewSecret(s.Token)
	if s.TokenFile != "" {
		var err error
		if token, err = broker.Ref("file:" + s.TokenFile).Resolve(); err != nil {
			return nil, err
		}
	}
	if token.Empty() {
		return nil, errors.New("say who asks: --token-file or TASKPASS_TOKEN")
	}
	return client.NewClientWithResponses(s.URL, client.WithHTTPClient(&http.Client{Timeout: 30 * time.Second}),
		client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+token.Reveal())
			return nil
		}))
}

type poolCmd struct {
	List       poolListCmd   `cmd:"" help:"List a pool's keys, never their values."`
	Add        poolAddCmd    `cmd:"" help:"Put a key into a pool; its value is read from standard input."`
	Rotate     poolRotateCmd `cmd:"" help:"Give a key another value, read from standard input, and move its holders."`
	Abort      poolAbortCmd  `cmd:"" help:"Abort a key's rotation: it has its value of before again."`
	Quarantine poolQuarCmd   `cmd:"" help:"Hand a key out to nobody until its value has changed."`
	Free       poolFreeCmd   `cmd:"" help:"Take a key out of quarantine."`
	Retire     poolRetireCmd `cmd:"" help:"Hand a key out never again."`
}

type poolKeyArgs struct {
	service
	Pool string `arg:"" help:"The pool's name."`
	Key  string `arg:"" help:"The key's name."`
}

type poolListCmd struct {
	service
	Pool string `arg:"" help:"The pool's name."`
}

func (c *poolListCmd) Run(e *env) error {
	api, err := c.client()
	if err != nil {
		return err
	}
	r, err := api.ListPoolKeysWithResponse(e.ctx, c.Pool)
	if err != nil {
		return err
	}
	if r.JSON200 == nil {
		return problem(r.HTTPResponse, r.Body)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KEY\tSTATE\tSOURCE\tSCOPES\tREFUSALS\tDUE BACK\tMOVED\tREASON\tPROBLEM")
	for _, k := range r.JSON200.Keys {
		back, moved := "", ""
		if !k.BackAt.IsZero() {
			back = k.BackAt.Format(time.RFC3339)
		}
		if k.Rotation.ID != "" {
			moved = fmt.Sprintf("%d of %d until %s", k.Rotation.Moved, k.Rotation.Holders, k.Rotation.Deadline.Format(time.RFC3339))
		}
		cells := []string{k.Name, string(k.State), string(k.Source), strings.Join(k.Scopes, " "), strconv.Itoa(k.Refusals), back, moved, k.Reason, k.Problem}
		for i, c := range cells {
			cells[i] = audit.VisibleLine(c) // a broker's answer, which may have any text in it
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

type poolAddCmd struct {
	poolKeyArgs
	Scope    []string          `help:"What the key can do; may be given several times. Without it: all of the pool's scopes."`
	Label    map[string]string `help:"name=value, by which profiles select keys; may be given several times."`
	VendorID string            `help:"By what the vendor knows the key."`
}

func (c *poolAddCmd) Run(e *env) error {
	api, value, err := c.open(e)
	if err != nil {
		return err
	}
	r, err := api.AddPoolKeyWithResponse(e.ctx, c.Pool, client.NewPoolKey{
		Name: c.Key, Value: value.Reveal(), Scopes: c.Scope, Labels: c.Label, VendorID: c.VendorID,
	})
	if err != nil {
		return err
	}
	return c.print(e, r.JSON201, r.HTTPResponse, r.Body)
}

type poolRotateCmd struct {
	poolKeyArgs
	Deadline time.Duration `default:"1h" help:"How long its holders have to move: ${default} by default, 1m to 168h."`
	VendorID string        `help:"By what the vendor knows the new value."`
}

func (c *poolRotateCmd) Run(e *env) error {
	api, value, err := c.open(e)
	if err != nil {
		return err
	}
	r, err := api.RotatePoolKeyWithResponse(e.ctx, c.Pool, c.Key, client.RotatePoolKey{
		Value: value.Reveal(), DeadlineSeconds: int(c.Deadline.Seconds()), VendorID: c.VendorID,
	})
	if err != nil {
		return err
	}
	return c.print(e, r.JSON202, r.HTTPResponse, r.Body)
}

type poolAbortCmd struct{ poolKeyArgs }

func (c *poolAbortCmd) Run(e *env) error { return c.change(e, client.Abort, "") }

type poolQuarCmd struct {
	poolKeyArgs
	Reason string `help:"Why; it is on the record."`
}

func (c *poolQuarCmd) Run(e *env) error { return c.change(e, client.Quarantine, c.Reason) }

type poolFreeCmd struct {
	poolKeyArgs
	Reason string `help:"Why; it is on the record."`
}

func (c *poolFreeCmd) Run(e *env) error { return c.change(e, client.Free, c.Reason) }

type poolRetireCmd struct {
	poolKeyArgs
	Reason string `help:"Why; it is on the record."`
}

func (c *poolRetireCmd) Run(e *env) error { return c.change(e, client.Retire, c.Reason) }

// open makes the client, and reads the value: from standard input, for arguments are seen by everybody on the machine.
func (c poolKeyArgs) open(e *env) (*client.ClientWithResponses, broker.Secret, error) {
	api, err := c.client()
	if err != nil {
		return nil, broker.Secret{}, err
	}
	text, err := io.ReadAll(io.LimitReader(e.stdin, broker.MaxSecretValue+3))
	if err != nil {
		return nil, broker.Secret{}, fmt.Errorf("reading the value: %w", err)
	}
	if len(text) == 0 {
		return nil, broker.Secret{}, errors.New("standard input has no value")
	}
	value, err := broker.NewSecretValue(string(text))
	if err != nil {
		return nil, broker.Secret{}, fmt.Errorf("the value on standard input %w", err)
	}
	return api, value, nil
}

func (c poolKeyArgs) change(e *env, action client.ChangePoolKeyParamsAction, reason string) error {
	api, err := c.client()
	if err != nil {
		return err
	}
	r, err := api.ChangePoolKeyWithResponse(e.ctx, c.Pool, c.Key, action, client.ChangePoolKey{Reason: reason})
	if err != nil {
		return err
	}
	return c.print(e, r.JSON200, r.HTTPResponse, r.Body)
}

func (c poolKeyArgs) print(e *env, k *client.PoolKey, r *http.Response, body []byte) error {
	if k == nil {
		return problem(r, body)
	}
	_, err := fmt.Fprintln(e.stdout, audit.VisibleLine(fmt.Sprintf("%s/%s is %s.", c.Pool, k.Name, k.State)))
	return err
}

// problem is what a broker answered in place of what was asked for.
func problem(r *http.Response, body []byte) error {
	var p struct {
		Code, Detail string
		Errors       []struct{ Pointer, Reason string }
	}
	if json.Unmarshal(body, &p) != nil || p.Code == "" {
		return fmt.Errorf("the broker answered %d and no problem", r.StatusCode)
	}
	e := &broker.Error{Code: broker.Code(p.Code), Message: p.Detail}
	for _, f := range p.Errors {
		e.Faults = append(e.Faults, broker.Fault{Pointer: f.Pointer, Reason: f.Reason})
	}
	return e
}
