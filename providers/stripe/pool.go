package stripe

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const (
	// exhaustedPause is what a caller is told to wait when nobody knows when a key comes back.
	exhaustedPause = 30 * time.Second
	// releaseTimeout bounds giving a key back that turned out not to do, when the caller may have gone.
	releaseTimeout = 5 * time.Second
)

// pooled hands out keys that operators made.
type pooled struct {
	base
	admissions admissions
	files      broker.SecretFiles
	problems   broker.KeyProblems
}

func newPooled(b base) *pooled {
	p := &pooled{base: b}
	p.problems.Logger = b.Logger
	return p
}

// poolKey is one key of the pool as it is now.
type poolKey struct {
	name     string
	value    broker.Secret
	sum      string // fingerprint of the value
	declared permissions
}

func (k poolKey) choice() broker.KeyChoice {
	return broker.KeyChoice{Name: k.name, Fingerprint: []byte(k.sum)}
}

// Upstream implements broker.Provider.
func (p *pooled) Upstream(broker.Credential) string { return "stripe:pool:" + p.cfg.Pool.Name }

// slots is the pool's name in the ledger: it is not one of package pool's of the same name.
func (p *pooled) slots() string { return "stripe:" + p.cfg.Pool.Name }

// Quota implements broker.Metered: trying keys is calling Stripe.
func (p *pooled) Quota() string { return p.Upstream(broker.Credential{}) }

// present reads the keys as they are now. What cannot be read, or is no restricted key of this mode, is left out, and the
// reason is told: one bad key does not stop the others (P11). Where a file may still be being written, again is when to
// look again.
func (p *pooled) present() (keys []poolKey, reasons []string, again time.Duration) {
	problems := map[string]error{}
	for _, k := range p.cfg.Pool.Keys {
		value, wait, err := p.files.Resolve(k.Value)
		if err != nil {
			problems[k.Name] = err
		}
		if wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
		switch {
		case err != nil:
			reasons = append(reasons, k.Name+" "+unusable(err))
		case strings.HasPrefix(value.Reveal(), "sk_"):
			reasons = append(reasons, k.Name+" is an unrestricted key (sk_), which is never handed out")
		case !isKey(value, p.cfg.Livemode, "rk_"):
			reasons = append(reasons, fmt.Sprintf("%s is not a restricted key of this profile's mode (livemode: %t)", k.Name, p.cfg.Livemode))
		default:
			sum := value.Fingerprint()
			keys = append(keys, poolKey{k.Name, value, string(sum[:]), implying(k.Permissions...)})
		}
	}
	p.problems.Set(context.Background(), p.slots(), problems)
	return keys, reasons, again
}

// unusable is what a caller is told: nothing of the value, nor where it is kept.
func unusable(err error) string {
	if _, ok := errors.AsType[*fs.PathError](err); ok || errors.Unwrap(err) == nil {
		return "cannot be read"
	}
	return "cannot be handed out: its value " + errors.Unwrap(err).Error()
}

// readable is present, after a wait for files that were just written if there is no key without them.
func (p *pooled) readable(ctx context.Context) (keys []poolKey, reasons []string) {
	keys, reasons, again := p.present()
	for tries := 0; len(keys) == 0 && again > 0 && tries < 2; tries++ {
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return keys, reasons
		case <-timer.C:
		}
		keys, reasons, again = p.present()
	}
	return keys, reasons
}

// share is what one caller may use of the pool; zero where only one caller may use it, or each may use all of it.
func (p *pooled) share(keys []poolKey) broker.Share {
	if !p.Shared || p.cfg.Pool.SharePercent == 100 {
		return broker.Share{}
	}
	all := make([]broker.KeyChoice, len(keys))
	for i, k := range keys {
		all[i] = k.choice()
	}
	return broker.ShareOf(all, p.cfg.Pool.SharePercent, 0)
}

func (p *pooled) sums() []string {
	keys, _, _ := p.present()
	sums := make([]string, len(keys))
	for i, k := range keys {
		sums[i] = k.sum
	}
	return sums
}

// able is what a key can do as far as is known: what it is declared to, less what it was seen to lack, and what it was seen
// to have besides.
func (k poolKey) able(f finding) permissions {
	all := permissions{}
	for name := range k.declared {
		if !f.lacks[name] {
			all[name] = true
		}
	}
	for _, name := range f.surplus {
		all[name] = true
	}
	return all
}

// unfit says why a key does not do for what is wanted; empty: it does.
func (p *pooled) unfit(k poolKey, f finding, want permissions) string {
	missing := want.without(k.able(f))
	switch {
	case f.dead:
		return k.name + " is not accepted by Stripe"
	case len(missing) > 0:
		return k.name + " lacks " + strings.Join(missing, ", ")
	case len(f.surplus) > 0 && p.cfg.Pool.Undeclared != "accept":
		return k.name + " can do more than is declared: " + strings.Join(f.surplus, ", ")
	}
	return ""
}

// Mint implements broker.Provider: it takes the smallest key that suffices, and tries it before it is handed out.
func (p *pooled) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	if err := ctx.Err(); err != nil {
		return broker.Minted{}, surely(broker.Errorf(broker.CodeUnavailable, "the caller has gone").Because(err))
	}
	names, err := p.wanted(c)
	if err != nil {
		return broker.Minted{}, surely(err)
	}
	want := implying(names...)
	keys, reasons := p.readable(ctx)
	share := p.share(keys)
	if c.Version.Number > 1 { // a credential's versions share its key
		held, ok, err := p.Slots.Held(ctx, c.ID)
		if err != nil {
			return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
		}
		if ok {
			keys = slices.DeleteFunc(keys, func(k poolKey) bool { return k.name != held.Name })
		}
	}
	for {
		tiers, unfit := p.tiers(keys, want)
		if len(tiers) == 0 {
			return broker.Minted{}, surely(p.noneFits(keys, names, slices.Concat(reasons, unfit)))
		}
		k, err := p.take(ctx, c, tiers, share)
		if err != nil {
			return broker.Minted{}, err
		}
		f, err := p.admit(ctx, k)
		if err == nil {
			if why := p.unfit(k, f, want); why == "" {
				return p.minted(k, f, names, want), nil
			} else if c.Version.Number > 1 { // it is held, and stays so: its other versions end in their own time
				return broker.Minted{}, surely(p.noneFits([]poolKey{k}, names, []string{why}))
			}
		}
		if releaseErr := p.giveBack(ctx, c, k); releaseErr != nil {
			return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "a key that does not do could not be given back").Because(releaseErr)
		}
		if err != nil {
			return broker.Minted{}, surely(err)
		}
		// What was found about it keeps it out of the tiers from now on.
	}
}

// tiers sorts the keys that suffice, the smallest first, those of one size together; and says why the others do not.
func (p *pooled) tiers(keys []poolKey, want permissions) (tiers [][]poolKey, reasons []string) {
	type sized struct {
		poolKey
		surplus int
	}
	var fit []sized
	for _, k := range keys {
		f := p.admissions.peek(k.sum)
		if why := p.unfit(k, f, want); why != "" {
			if p.fresh(f) {
				reasons = append(reasons, why)
				continue
			}
			f = finding{} // it may have been set right since
			if why := p.unfit(k, f, want); why != "" {
				reasons = append(reasons, why)
				continue
			}
		}
		fit = append(fit, sized{k, len(k.able(f).without(want))})
	}
	slices.SortStableFunc(fit, func(a, b sized) int { return cmp.Compare(a.surplus, b.surplus) })
	for i, k := range fit {
		if i == 0 || fit[i-1].surplus != k.surplus {
			tiers = append(tiers, nil)
		}
		tiers[len(tiers)-1] = append(tiers[len(tiers)-1], k.poolKey)
	}
	return tiers, reasons
}

// take takes a key of the first tier that has one free. Each is one statement of the ledger's database, so when it fails
// with an answer nothing was taken.
func (p *pooled) take(ctx context.Context, c broker.Credential, tiers [][]poolKey, share broker.Share) (poolKey, error) {
	var back time.Time
	for _, tier := range tiers {
		choices := make([]broker.KeyChoice, len(tier))
		for i, k := range tier {
			choices[i] = k.choice()
		}
		name, ok, due, err := p.Slots.Take(ctx, p.slots(), c, choices, share, broker.Rest{UntilRotated: true}, p.Clock())
		if errors.Is(err, broker.ErrOverShare) {
			e := broker.Errorf(broker.CodeQuotaExceeded, "your keys of this pool, held and quarantined, are the share of it that one caller may use: "+
				"end credentials that are not needed, or have the operator replace quarantined keys, add keys, or raise the pool's share_percent")
			e.RetryAfter = p.wait(due)
			return poolKey{}, surely(e)
		}
		if err != nil {
			return poolKey{}, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
		}
		if ok {
			return tier[slices.IndexFunc(tier, func(k poolKey) bool { return k.name == name })], nil
		}
		if !due.IsZero() && (back.IsZero() || due.Before(back)) {
			back = due
		}
	}
	e := broker.Errorf(broker.CodePoolExhausted, "every key that suffices is held or quarantined")
	e.RetryAfter = p.wait(back)
	return poolKey{}, surely(e)
}

func (p *pooled) wait(back time.Time) time.Duration {
	if wait := back.Sub(p.Clock()); !back.IsZero() && wait > 0 {
		return wait
	}
	return exhaustedPause
}

// giveBack frees a key that nobody was given.
func (p *pooled) giveBack(ctx context.Context, c broker.Credential, k poolKey) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return p.Slots.Release(ctx, c, []byte(k.sum), broker.Rest{}, p.Clock())
}

// minted is the key with all that the record should know of it.
func (p *pooled) minted(k poolKey, f finding, names []string, want permissions) broker.Minted {
	var unverified []string
	for _, name := range names {
		if !f.has[name] {
			unverified = append(unverified, name)
		}
	}
	return broker.Minted{
		Secret: p.bundle("stripe_key", k.value), UpstreamIDs: []string{p.slots() + "/" + k.name},
		Trace: map[string]string{
			"mode": modePool, "pool": p.cfg.Pool.Name, "key": k.name, "livemode": fmt.Sprint(p.cfg.Livemode), "permissions": strings.Join(names, " "),
			"over_granted": strings.Join(k.able(f).without(want), " "), "unverified": strings.Join(unverified, " "),
		},
	}
}

// noneFits names what is missing, and where the operator makes a key that has it.
func (p *pooled) noneFits(keys []poolKey, names []string, reasons []string) error {
	missing := names
	want := implying(names...)
	for _, k := range keys {
		f := p.admissions.peek(k.sum)
		if lacking := want.without(k.able(f)); len(lacking) < len(missing) {
			missing = lacking
		}
	}
	what := "no key of the pool fits"
	if len(missing) > 0 {
		what = "no key of the pool has all of these permissions; the nearest lacks " + strings.Join(missing, ", ")
	}
	if len(reasons) > 0 {
		what += " (" + strings.Join(reasons[:min(len(reasons), 5)], "; ") + ")"
	}
	return refusedUnsent("%s: the operator can make one at %s", what, createLink(p.cfg.Livemode, "taskpass-"+p.cfg.Pool.Name, names))
}

// Revoke implements broker.Provider. A normal end, or one before anybody saw the key, returns it to the pool. A revocation
// quarantines it, and is done only when Stripe refuses the value that was handed out.
func (p *pooled) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	held, holds, err := p.Slots.Held(ctx, c.ID)
	if err != nil {
		return broker.Revocation{}, err
	}
	now := p.Clock().UTC()
	present := p.presentSum(held)
	if c.Version.Cause != broker.CauseRevoked || c.Version.Fingerprint == nil {
		done := broker.Revocation{Result: broker.ResultReleased, EffectiveAt: now, Basis: "returned"}
		if !holds {
			done.Basis = "not_held"
			return done, nil
		}
		return done, p.Slots.Release(ctx, c, present, broker.Rest{}, now)
	}
	if holds {
		if err := p.Slots.Quarantine(ctx, c.ID); err != nil {
			return broker.Revocation{}, err
		}
	}
	dead, err := p.refusedByStripe(ctx, c)
	if err != nil {
		return broker.Revocation{}, err
	}
	if !dead {
		return broker.Revocation{}, broker.ErrNotRotated
	}
	done := broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "refused_as_expired"}
	p.admissions.forget(string(c.Version.Fingerprint))
	if !holds || bytes.Equal(present, c.Version.Fingerprint) { // a dead value is at its place: it stays quarantined until there is another
		return done, nil
	}
	return done, p.Slots.Release(ctx, c, present, broker.Rest{}, now)
}

// presentSum is the fingerprint of the held key's value now; where it cannot be read, as it was when it was taken.
func (p *pooled) presentSum(held broker.KeyChoice) []byte {
	for _, k := range p.cfg.Pool.Keys {
		if k.Name == held.Name {
			if value, _, err := p.files.Resolve(k.Value); err == nil {
				sum := value.Fingerprint()
				return sum[:]
			}
		}
	}
	return held.Fingerprint
}

// refusedByStripe shows Stripe the value that the version handed out. Without the value there is no proof.
func (p *pooled) refusedByStripe(ctx context.Context, c broker.Credential) (bool, error) {
	secret, ok, err := p.handed(ctx, c)
	if err != nil {
		return false, broker.Errorf(broker.CodeUnavailable, "what was handed out could not be looked up").Because(err)
	}
	if sum := secret.Fingerprint(); !ok || !bytes.Equal(sum[:], c.Version.Fingerprint) {
		return false, nil
	}
	state, f := p.try(ctx, secret)
	if f != nil {
		return false, f.meaning()
	}
	return state == aliveNo, nil
}
