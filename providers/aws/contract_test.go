package aws_test

import (
	"testing"

	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"deny", "none"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ledger := replicas(t, 1)[0]
			providertest.Run(t, func(t *testing.T) providertest.Subject {
				return newRig(t, func(c *aws.Config) { c.Revocation.Mode = mode }).subject(t, ledger)
			})
		})
	}
}
