package broker

import (
	"maps"
	"regexp"
	"slices"
)

// Limits of a profile's fixed environment variables.
const (
	maxEnv      = 32
	maxEnvName  = 128
	maxEnvValue = 1024
)

var (
	envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// envSecret are beginnings of vendors' keys and of our own tokens. A reference to a secret would not be resolved either.
	envSecret = regexp.MustCompile(`^(A[KS]IA[A-Z0-9]{12,}|[a-z]{2,3}_(live|test)_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ya29\.|AIza[A-Za-z0-9_-]{30,}|` +
		`gh[a-z]_[A-Za-z0-9]{16,}|xox[a-z]-|-----BEGIN |tp[ctx]_[A-Za-z0-9]{16,}|[a-z]+://[^/@ ]*:[^/@ ]*@)`)
)

// CheckEnv returns what is wrong with a profile's fixed environment variables; sets are those that its provider sets. A
// pointer is a variable's name, and empty where the name itself is wrong. No fault repeats a value.
func CheckEnv(env map[string]string, sets []string) []Fault {
	var f Faults
	if len(env) > maxEnv {
		f.Add("", "has more than %d variables", maxEnv)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		value := env[name]
		switch {
		case !envName.MatchString(name) || len(name) > maxEnvName:
			f.Add("", "has a name that is not 1-%d of A-Z a-z 0-9 _, without a digit at its beginning", maxEnvName)
		case slices.Contains(sets, name):
			f.Add(name, "belongs to the provider: leave it out")
		case len(value) > maxEnvValue:
			f.Add(name, "is longer than %d bytes", maxEnvValue)
		case CheckSecretValue(value) != nil:
			f.Add(name, "%v", CheckSecretValue(value))
		case envSecret.MatchString(value) || Ref(value).Check() == nil:
			f.Add(name, "looks like a secret, or a reference to one: every agent of the profile gets it, and this file is no place for it")
		}
	}
	return f
}

// withEnv adds a profile's fixed variables to what the agent gets. The provider's own always win.
func withEnv(b Bundle, env map[string]string) Bundle {
	if len(env) > 0 {
		all := hideAll(env)
		maps.Copy(all, b.Env)
		b.Env = all
	}
	return b
}
