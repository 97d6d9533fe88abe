// Package providertest is the Provider contract as a test suite: every provider must pass it.
//
// It decides what the comments of broker.Provider mean at an upstream's wire: what a failed Mint may leave behind, what a
// Revocation may claim, what an error may show. It refuses to know any vendor: a [Subject] brings a provider together
// with the means to look at its upstream from outside and to make it fail. The upstream must be one that enforces what
// the vendor enforces: a stand-in at the vendor's wire, never a fake inside the provider.
//
//	func TestContract(t *testing.T) {
//		t.Parallel()
//		providertest.Run(t, func(t *testing.T) providertest.Subject { … })
//	}
package providertest
