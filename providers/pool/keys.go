package pool

import (
	"context"
	"slices"
	"strings"

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

// keys are the pool's keys that can be read. One that cannot stops no other (P11).
func (p *Provider) keys(ctx context.Context) ([]key, error) {
	list := make([]key, 0, len(p.cfg.Keys))
	for _, k := range p.cfg.Keys {
		value, err := p.values.read(ctx, string(k.Value))
		if err != nil {
			continue
		}
		known := newKey(k.Name, value, k.Scopes, k.Labels)
		known.vendorID = k.VendorID
		list = append(list, known)
	}
	sealed, err := p.slots.SealedKeys(ctx, p.cfg.Name)
	if err != nil {
		return nil, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
	}
	for _, s := range sealed {
		plain, err := p.seal.Open(s.Sealed, s.ValueID)
		if err != nil {
			continue
		}
		k := newKey(s.Name, broker.NewSecret(string(plain)), s.Scopes, s.Labels)
		clear(plain)
		k.vendorID = s.VendorID
		list = append(list, k)
	}
	return list, nil
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
