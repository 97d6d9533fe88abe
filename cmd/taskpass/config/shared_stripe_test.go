package config_test

import (
	"strings"
	"testing"

	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

const stripeProfile = `  NAME:
    provider: stripe
    ttl: {default: 10m, max: 1h}
    allow:
      - callers: [bob]
    stripe:
      mode: pool
      pool:
        name: POOL
        disclosed: accept
        keys:
          - {name: k, value: "VALUE", permissions: [PERMISSION]}
      scopes: {s: {permissions: [customer_read]}}
`

// Profiles share a pool of Stripe keys only if they say the same of each key.
func TestStripePoolsAreShared(t *testing.T) {
	t.Parallel()
	profile := func(name, pool, value, permission string) string {
		return strings.NewReplacer("NAME", name, "POOL", pool, "VALUE", value, "PERMISSION", permission).Replace(stripeProfile)
	}
	for name, c := range map[string]struct{ other, want string }{
		"the same":          {profile("y", "p1", "file:/run//k", "customer_read"), ""},
		"other permissions": {profile("y", "p1", "file:/run/k", "customer_write"), "profiles.y.stripe.pool.keys: differ from those of profile x"},
		"another value":     {profile("y", "p1", "env:K2", "customer_read"), "profiles.y.stripe.pool.keys: differ"},
		"two pools":         {profile("y", "p2", "file:/run//k", "customer_read"), "profiles.y.stripe.pool.keys[0].value: is a key of another pool too, in profile x"},
	} {
		_, err := config.Parse("test", []byte(small+profile("x", "p1", "file:/run/k", "customer_read")+c.other))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
