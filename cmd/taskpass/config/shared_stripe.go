package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// stripePools holds for pools of Stripe keys what pools holds for others: profiles may share a pool, but a key belongs to
// one, and can do the same wherever it stands.
func (r *report) stripePools(profiles map[string]Profile) {
	type holder struct{ pool, profile string }
	first, holders := map[string]string{}, map[string]holder{}
	for _, name := range sorted(profiles) {
		s := profiles[name].Stripe
		if s == nil || s.Pool == nil || !broker.ValidID(s.Pool.Name) {
			continue
		}
		pool, at := s.Pool.Name, "profiles."+name+".stripe.pool.keys"
		if other, shared := first[pool]; !shared {
			first[pool] = name
		} else if !slices.Equal(stripeKeys(profiles[name]), stripeKeys(profiles[other])) {
			r.add(at, "differ from those of profile %s, whose pool has the same name", shown(other))
		} else if s.Pool.SharePercent != profiles[other].Stripe.Pool.SharePercent {
			r.add("profiles."+name+".stripe.pool", "has another share_percent than profile %s, whose pool has the same name", shown(other))
		}
		for i, key := range s.Pool.Keys {
			if key.Value.Check() != nil {
				continue
			}
			ref := sameFile(key.Value)
			if h, taken := holders[ref]; !taken {
				holders[ref] = holder{pool, name}
			} else if h.pool != pool {
				r.add(fmt.Sprintf("%s[%d].value", at, i), "is a key of another pool too, in profile %s: one key has one holder", shown(h.profile))
			}
		}
	}
}

// stripeKeys is a pool's keys in a comparable form.
func stripeKeys(p Profile) []string {
	var list []string
	for _, key := range p.Stripe.Pool.Keys {
		permissions := slices.Sorted(slices.Values(key.Permissions))
		list = append(list, key.Name+" "+sameFile(key.Value)+" "+strings.Join(permissions, " "))
	}
	slices.Sort(list)
	return list
}
