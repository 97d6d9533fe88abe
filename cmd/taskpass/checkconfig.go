package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/providers"
)

// proveTimeout bounds what one profile's upstream is asked.
const proveTimeout = time.Minute

type checkConfigCmd struct {
	File        string `arg:"" type:"path" help:"The configuration file."`
	Online      bool   `help:"Ask each profile's upstream whether the broker may do what the profile promises, above all revoke. Nothing is changed."`
	ProbeWrites bool   `name:"probe-writes" help:"As --online, and prove it by writes that harm nothing and are undone: see the provider's page."`
}

func (c *checkConfigCmd) Run(e *env) error {
	file, err := config.Load(c.File)
	if err != nil {
		return err
	}
	for _, w := range file.Warnings() {
		_, _ = fmt.Fprintf(e.stderr, "warning: %s\n", w)
	}
	profiles := "1 profile"
	if n := len(file.Profiles); n != 1 {
		profiles = fmt.Sprintf("%d profiles", n)
	}
	if _, err = fmt.Fprintf(e.stdout, "%s: good, with %s\n", c.File, profiles); err != nil || !c.Online && !c.ProbeWrites {
		return err
	}
	opened, err := file.Open(e.ctx, providers.Deps{Clock: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	lacking := 0
	for _, name := range slices.Sorted(maps.Keys(opened)) {
		for _, p := range c.prove(e.ctx, opened[name].Upstream) {
			if p.State == broker.Lacking {
				lacking++
			}
			if _, err := fmt.Fprintf(e.stdout, "profile %s: %s: %s (%s)\n", name, p.State, p.Right, p.How); err != nil {
				return err
			}
		}
	}
	if lacking > 0 {
		return fmt.Errorf("%d of the rights that the profiles need are lacking", lacking)
	}
	return nil
}

// prove asks one profile's provider, and closes it.
func (c *checkConfigCmd) prove(ctx context.Context, upstream broker.Provider) []broker.Proof {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	var list []broker.Proof
	if p, ok := upstream.(broker.Prover); ok {
		list = p.Prove(ctx, c.ProbeWrites)
	}
	if closer, ok := upstream.(io.Closer); ok {
		if err := closer.Close(); err != nil && !errors.Is(err, context.Canceled) {
			list = append(list, broker.NotProvenBy("closing", err))
		}
	}
	if len(list) == 0 {
		list = []broker.Proof{{Right: "nothing to prove", State: broker.NotProven, How: "the profile promises no revocation that the broker makes"}}
	}
	return list
}
