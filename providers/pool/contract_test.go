package pool_test

import (
	"testing"

	"github.com/taskpass/taskpass/providers/providertest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	providertest.Run(t, func(t *testing.T) providertest.Subject {
		return newRig(t, providertest.AtOnce+2).subject(t, ledger)
	})
}
