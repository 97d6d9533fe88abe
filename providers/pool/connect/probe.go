package connect

import (
	"context"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Probe is a cheap call of the vendor's API, by which a pool asks whether a key is refused. It sends the key itself.
type Probe struct {
	URL    string `yaml:"url"`    // a GET that costs nothing, such as https://api.example.com/v1/models
	Header string `yaml:"header"` // the key is its value; absent: Authorization, with "Bearer " before the key
}

// probeTimeout bounds one probe: the holder that reported waits for it.
const probeTimeout = 5 * time.Second

// Check returns all that is wrong; pointers are paths within the section.
func (c Probe) Check() []broker.Fault {
	var f broker.Faults
	f.URL("url", c.URL)
	for _, r := range c.Header {
		if r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			f.Add("header", "is not the name of a header")
			break
		}
	}
	return f
}

// Prober asks a vendor about keys.
type Prober struct {
	vendor
	cfg Probe
}

// OpenProber makes the Prober of a configuration that Check found good.
func OpenProber(cfg Probe, w Wire) *Prober {
	return &Prober{newVendor("the pool's probe", "X-Request-Id", "probe.url and probe.header", w), cfg}
}

// Refuses tells whether the vendor refuses a key: 401 says so, and 2xx the opposite. Every other answer proves neither,
// and is an error; so is an HTML page, which a proxy or a login wrote.
func (p *Prober) Refuses(ctx context.Context, key broker.Secret) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	header := http.Header{}
	if p.cfg.Header == "" {
		header.Set("Authorization", "Bearer "+key.Reveal())
	} else {
		header.Set(p.cfg.Header, key.Reveal())
	}
	r, err := p.do(ctx, "probe", http.MethodGet, p.cfg.URL, header, nil)
	switch {
	case err != nil:
		return false, err
	case r.isPage() && (r.good() || r.status == http.StatusUnauthorized):
		return false, broker.Errorf(broker.CodeUpstreamError, "the answer to the pool's probe is an HTML page (HTTP %d), so it counts as a gateway's and not as the vendor's: "+
			"the operator should check probe.url, and what is on the way to it", r.status).Because(p.cause(r))
	case r.status == http.StatusUnauthorized:
		return true, nil
	case r.good():
		return false, nil
	}
	return false, p.meaning(r)
}
