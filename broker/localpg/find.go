package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNotInstalled means that no directory has both initdb and postgres.
var ErrNotInstalled = errors.New("PostgreSQL's server programs, initdb and postgres, were not found on this machine")

const waysOut = "install them (Debian: apt-get install postgresql; macOS: brew install postgresql@16), " +
	"or use a database you have (--database-url postgres://…), " +
	"or run everything in containers (docker compose up)"

// find returns a directory with initdb and postgres, of the wanted major version
// if there is one. Debian puts psql on PATH and the server elsewhere; others put
// a link to postgres on PATH without initdb beside it: only a pair will do.
func find(ctx context.Context, binDir, wantMajor string) (string, error) {
	var found []string
	for _, dir := range candidates(binDir) {
		if real, ok := pair(dir); ok && !slices.Contains(found, real) {
			found = append(found, real)
		}
	}
	if len(found) == 0 {
		err := fmt.Errorf("%w: %s", ErrNotInstalled, waysOut)
		if binDir != "" {
			err = fmt.Errorf("%w (only %s was searched)", err, binDir)
		}
		return "", err
	}
	if wantMajor != "" && len(found) > 1 {
		for _, dir := range found {
			// "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
			out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
			if err == nil && strings.Contains(string(out), ") "+wantMajor+".") {
				return dir, nil
			}
		}
	}
	return found[0], nil // if the version is wrong, PostgreSQL explains it best
}

// candidates lists where to look, best first.
func candidates(binDir string) []string {
	if binDir != "" {
		return []string{binDir}
	}
	if dir := os.Getenv("TASKPASS_PG_BIN"); dir != "" {
		return []string{dir}
	}
	dirs := filepath.SplitList(os.Getenv("PATH"))
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                   // PostgreSQL's own packages for RHEL
		"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
		"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
		"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
	} {
		matches, _ := filepath.Glob(pattern) // fails only for a bad pattern
		slices.SortFunc(matches, func(a, b string) int { return number(b) - number(a) })
		dirs = append(dirs, matches...)
	}
	return dirs
}

// pair reports the real directory of dir/initdb, if postgres is there too.
func pair(dir string) (string, bool) {
	initdb, err := filepath.EvalSymlinks(filepath.Join(dir, "initdb"))
	if err != nil {
		return "", false
	}
	real, err := filepath.Abs(filepath.Dir(initdb))
	if err != nil {
		return "", false
	}
	for _, program := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(real, program))
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			return "", false
		}
	}
	return real, true
}

// number is the last number in a path: its major version.
func number(path string) int {
	digits := strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' })
	if len(digits) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(digits[len(digits)-1]) // digits; at worst it overflows and sorts oddly
	return n
}

// clusterVersion is the major version that made the cluster in dir, or "".
func clusterVersion(dir string) string {
	version, err := os.ReadFile(filepath.Join(dir, "data", "PG_VERSION"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(version))
}
