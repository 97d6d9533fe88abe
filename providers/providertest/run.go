package providertest

import "testing"

// Run holds a provider to the contract. It calls start once for each check; the checks run in parallel.
func Run(t *testing.T, start func(t *testing.T) Subject) {
	t.Helper()
	for _, c := range []struct {
		name  string
		check func(*testing.T, Subject)
	}{
		{"capabilities are sane and stable", capabilities},
		{"upstream is named before", upstreamNamed},

		{"mint makes a secret that works", mintWorks},
		{"mint obeys the end", mintObeysExpiresAt},
		{"mint takes the shortest and the longest life", mintTakesBounds},
		{"mints differ", mintsDiffer},
		{"mint keeps secrets out of the record", mintKeepsSecrets},

		{"refused mint made nothing", mintRefused},
		{"throttled mint made nothing and is not retried", mintThrottled},
		{"unreachable mint made nothing", mintUnreachable},
		{"lost reply may have made something", mintLost(LoseReply)},
		{"server error may have made something", mintLost(ServerError)},
		{"timeout may have made something", mintLost(Hang)},
		{"mint obeys its context", mintCancelled},
		{"lying mint is not handed out", mintLies},

		{"revoke ends one and spares its siblings", revokeEnds},
		{"revoke works after a crash", revokeAfterCrash},
		{"revoke of what was never minted", revokeNeverMinted},
		{"revoke is idempotent", revokeTwice},
		{"revoke by many at once", revokeByMany},
		{"revoke of many at once", revokeMany},
		{"revoke of a replaced version spares its successor", revokeReplaced},
		{"revoke at the end", revokeAtEnd},
		{"revoke after the end", revokeAfterEnd},
		{"revoke of a disclosed secret waits for its replacement", revokeDisclosed},
		{"revoke obeys its context", revokeCancelled},
		{"refused revoke claims nothing", revokeFails(Refuse)},
		{"throttled revoke claims nothing", revokeFails(Throttle)},
		{"failed revoke claims nothing", revokeFails(ServerError)},
		{"unanswered revoke claims nothing", revokeFails(LoseReply)},
		{"lying revoke claims nothing", revokeLies},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check(t, start(t))
		})
	}
}
