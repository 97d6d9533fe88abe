package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// key is one key as it is now.
type key struct {
	name        string
	value       broker.Secret
	fingerprint []byte
	vendorID    string
	scopes      []string // empty: all of the pool's
	labels      map[string]string

	rank int      // how many scopes it has beside those that are asked for
	over []string // which
}

// keys are the pool's keys with a value that can be handed out. One that has none stops no other (P11).
func (p *Provider) keys(ctx context.Context) ([]key, error) {
	list, _, err := p.read(ctx)
	return list, err
}

// read also tells when to look again because files are being written; zero: none is.
func (p *Provider) read(ctx context.Context) (list []key, again time.Duration, err error) {
	list, problems := make([]key, 0, len(p.cfg.Keys)), map[string]error{}
	for _, k := range p.cfg.Keys {
		value, wait, err := p.values.read(ctx, string(k.Value))
		if wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
		if err != nil {
			problems[k.Name] = err
			continue
		}
		known := newKey(k.Name, value, k.Scopes, k.Labels)
		known.vendorID = k.VendorID
		list = append(list, known)
	}
	sealed, err := p.slots.SealedKeys(ctx, p.cfg.Name)
	if err != nil {
		return nil, 0, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
	}
	for _, s := range sealed {
		value, err := p.unseal(s)
		if err != nil {
			problems[s.Name] = err
			continue
		}
		k := newKey(s.Name, value, s.Scopes, s.Labels)
		k.vendorID = s.VendorID
		list = append(list, k)
	}
	if ctx.Err() == nil { // else stores were not asked to the end
		p.problems.Set(ctx, p.cfg.Name, problems)
	}
	return list, again, nil
}

func (p *Provider) unseal(s broker.SealedKey) (broker.Secret, error) {
	plain, err := p.seal.Open(s.Sealed, s.ValueID)
	if err != nil {
		return broker.Secret{}, errors.New("the value that was handed in cannot be opened with this keyset")
	}
	defer clear(plain)
	if err := broker.CheckSecretValue(string(plain)); err != nil {
		return broker.Secret{}, fmt.Errorf("the value that was handed in %w: rotate the key", err)
	}
	return broker.NewSecret(string(plain)), nil
}

func newKey(name string, value broker.Secret, scopes []string, labels map[string]string) key {
	sum := value.Fingerprint()
	return key{name: name, value: value, fingerprint: sum[:], scopes: scopes, labels: labels}
}

// fitting are the keys that have the wanted scopes and this profile's labels, each with how much it has beside.
func (p *Provider) fitting(keys []key, wanted []string) []key {
	var fit []key
	for _, k := range keys {
		has := k.scopes
		if len(has) == 0 {
			has = p.cfg.Scopes
		}
		if !contains(has, wanted) || !p.selects(k.labels) {
			continue
		}
		for _, s := range has {
			if !slices.Contains(wanted, s) {
				k.over = append(k.over, s)
			}
		}
		k.rank = len(k.over)
		fit = append(fit, k)
	}
	return fit
}

func contains(has, wanted []string) bool {
	for _, s := range wanted {
		if !slices.Contains(has, s) {
			return false
		}
	}
	return true
}

func (p *Provider) selects(labels map[string]string) bool {
	for name, value := range p.cfg.Select {
		if labels[name] != value {
			return false
		}
	}
	return true
}

func joined(scopes []string) string {
	return strings.Join(slices.Sorted(slices.Values(scopes)), " ")
}
