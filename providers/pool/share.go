package pool

import (
	"context"
	"sync"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// probeEvery is how often the vendor is asked about one value at most, whoever reports it: no caller can have it called
// at will.
const probeEvery = time.Minute

// share is what one caller may use of the pool; zero where only one caller may use it, or each may use all. Keys that fit a request have a
// share of their own, so that the few that have a rare scope are not one caller's either.
func (p *Provider) share(all, fit []key) broker.Share {
	if !p.shared {
		return broker.Share{}
	}
	keys := make([]broker.KeyChoice, len(all))
	for i, k := range all {
		keys[i] = broker.KeyChoice{Name: k.name, Fingerprint: k.fingerprint}
	}
	return broker.ShareOf(keys, p.cfg.SharePercent, len(fit))
}

// overShare is the answer for a caller that has used up its share.
func (p *Provider) overShare(back time.Time) *broker.Error {
	e := broker.Errorf(broker.CodeQuotaExceeded, "your keys of this pool, held, resting and quarantined, are the share of it that one caller may use: "+
		"end credentials that are not needed, or have the operator replace quarantined keys, add keys, or raise the pool's share_percent")
	e.RetryAfter = p.wait(back)
	return e
}

// counted tells whether a holder's report that its key is refused changes the key for others: within its caller's
// share; or when the pool's probe, or another caller, confirms it.
func (p *Provider) counted(ctx context.Context, c broker.Credential, keys []key, held broker.KeyChoice, now time.Time) (counts, confirmed bool, err error) {
	if !p.shared {
		return true, false, nil
	}
	over, err := p.slots.OverShare(ctx, p.cfg.Name, c.Caller, p.share(keys, keys), now)
	if err != nil || !over {
		return !over, false, err
	}
	for _, k := range keys {
		if k.name == held.Name && p.refusedByProbe(ctx, k, now) {
			return true, true, nil
		}
	}
	confirmed, err = p.slots.DoubtKey(ctx, p.cfg.Name, held.Name, held.Fingerprint, c.Caller)
	return confirmed, confirmed, err
}

// probes are the latest verdicts on values, by fingerprint.
type probes struct {
	mu    sync.Mutex
	known map[string]verdict
}

type verdict struct {
	at      time.Time
	refused bool
}

// refusedByProbe asks the vendor, or remembers what it said a moment ago. Without a probe, or an answer, it is false.
func (p *Provider) refusedByProbe(ctx context.Context, k key, now time.Time) bool {
	if p.probe == nil {
		return false
	}
	p.probes.mu.Lock()
	for sum, v := range p.probes.known {
		if now.Sub(v.at) >= probeEvery {
			delete(p.probes.known, sum)
		}
	}
	v, asked := p.probes.known[string(k.fingerprint)]
	if !asked {
		p.probes.known[string(k.fingerprint)] = verdict{at: now} // who reports it meanwhile does not ask too
	}
	p.probes.mu.Unlock()
	if asked {
		return v.refused
	}
	refused, err := p.probe.Refuses(ctx, k.value)
	if err != nil {
		p.logger.WarnContext(ctx, "a pool's probe proves nothing", "pool", p.cfg.Name, "key", k.name, "error", err)
	}
	p.probes.mu.Lock()
	defer p.probes.mu.Unlock()
	p.probes.known[string(k.fingerprint)] = verdict{now, refused}
	return refused
}
