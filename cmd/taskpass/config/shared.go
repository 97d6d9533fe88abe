package config

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// What several profiles share at one upstream must be said alike in all of them.

// roles: of one AWS role the deny policies are kept once, by whichever profile is asked.
func (r *report) roles(profiles map[string]Profile) {
	first, spill := map[string]string{}, map[string]string{} // policy → role
	for _, name := range sorted(profiles) {
		p := profiles[name].AWS
		if p == nil || p.RoleARN == "" {
			continue
		}
		for i, policy := range p.Revocation.SpillPolicies {
			if role, taken := spill[policy]; taken && role != p.RoleARN {
				r.add(fmt.Sprintf("profiles.%s.aws.revocation.spill_policies[%d]", name, i), "is another role's too: each would overwrite the other's denials")
			}
			spill[policy] = p.RoleARN
		}
		other, shared := first[p.RoleARN]
		if !shared {
			first[p.RoleARN] = name
			continue
		}
		if !reflect.DeepEqual(p.Revocation, profiles[other].AWS.Revocation) {
			r.add("profiles."+name+".aws.revocation", "differs from that of profile %s, which has the same role", shown(other))
		}
	}
}

// pools holds P8 across profiles: profiles may share a pool, but a key belongs to one.
func (r *report) pools(profiles map[string]Profile) {
	type holder struct{ pool, profile string }
	first, holders := map[string]string{}, map[string]holder{}
	for _, name := range sorted(profiles) {
		pool := profiles[name].Pool
		if pool == nil || !broker.ValidID(pool.Name) {
			continue
		}
		at := "profiles." + name + ".pool.keys"
		if other, shared := first[pool.Name]; !shared {
			first[pool.Name] = name
		} else if !slices.Equal(keyList(profiles[name]), keyList(profiles[other])) {
			r.add(at, "differ from those of profile %s, whose pool has the same name", shown(other))
		} else if o := profiles[other].Pool; pool.SharePercent != o.SharePercent || !reflect.DeepEqual(pool.Probe, o.Probe) {
			r.add("profiles."+name+".pool", "has another share_percent or probe than profile %s, whose pool has the same name", shown(other))
		}
		for i, key := range pool.Keys {
			if key.Value.Check() != nil {
				continue
			}
			ref := sameFile(key.Value)
			if h, taken := holders[ref]; !taken {
				holders[ref] = holder{pool.Name, name}
			} else if h.pool != pool.Name {
				r.add(fmt.Sprintf("%s[%d].value", at, i), "is a key of another pool too, in profile %s: one key has one holder", shown(h.profile))
			}
		}
	}
}

// poolsOf names what a profile lends to one credential at a time: its pool of keys, or each of its service accounts.
func poolsOf(p Profile) (names []string) {
	switch {
	case p.Provider == "pool" && p.Pool != nil:
		names = append(names, "pool:"+p.Pool.Name)
	case p.Provider == "stripe" && p.Stripe != nil && p.Stripe.Pool != nil:
		names = append(names, "stripe:"+p.Stripe.Pool.Name)
	case p.Provider == "gcp" && p.GCP != nil:
		for _, email := range p.GCP.Accounts {
			names = append(names, "gcp:"+email)
		}
	}
	return names
}

// sharedPools are the pools and accounts that several callers may use, by the rules of all profiles that name them. A
// pattern stands for several callers, whoever exists now.
func sharedPools(profiles map[string]Profile) map[string]bool {
	callers, shared := map[string]string{}, map[string]bool{}
	for _, p := range profiles {
		for _, pool := range poolsOf(p) {
			for _, rule := range p.Allow {
				for _, caller := range rule.Callers {
					known, ok := callers[pool]
					shared[pool] = shared[pool] || strings.HasSuffix(caller, "*") || ok && known != caller
					callers[pool] = caller
				}
			}
		}
	}
	return shared
}

// keyList is a pool's keys in a comparable form.
func keyList(p Profile) []string {
	var list []string
	for _, key := range p.Pool.Keys {
		list = append(list, key.Name+" "+sameFile(key.Value))
	}
	slices.Sort(list)
	return list
}

// sameFile spells a reference in one way, so that /run//a and /run/a are one key.
func sameFile(ref broker.Ref) string {
	if name, ok := strings.CutPrefix(string(ref), "file:"); ok {
		return "file:" + filepath.Clean(name)
	}
	return string(ref)
}
