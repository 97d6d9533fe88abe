package broker

import "context"

// Handed gives a provider back what a version handed out. Some upstreams say that a secret is dead a while before it is:
// the one proof is to show it to them once more.
type Handed interface {
	// Handed is the version's secret; ok is false where nobody was given one, or the version has ended.
	Handed(ctx context.Context, id VersionID) (secret Bundle, ok bool, err error)
}

// Safe implements Handed by the sealed secrets of the ledger.
type Safe struct {
	Sealed interface {
		Sealed(ctx context.Context, id VersionID) ([]byte, error)
	}
	Sealer Sealer
}

// Handed implements Handed.
func (s Safe) Handed(ctx context.Context, id VersionID) (Bundle, bool, error) {
	sealed, err := s.Sealed.Sealed(ctx, id)
	if err != nil || sealed == nil {
		return Bundle{}, false, err
	}
	bundle, err := openBundle(s.Sealer, sealed, id)
	return bundle, err == nil, err
}
