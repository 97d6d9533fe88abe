// Package house_test holds the house in order: which package may import which, and
// a few habits that a reader counts on. docs/architecture.md says why.
package house_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/taskpass/taskpass"

// A room is a folder whose packages may import each other freely. broker/* and
// providers/* have one for each sub-folder; any other top-level folder is one.
//
// doors lists what else of ours a room may import. A trailing /* means every
// sub-folder's room. Tests may import anything.
var doors = map[string][]string{
	"broker":       {}, // and of others' code only the standard library and a UUID library
	"broker/*":     {"broker"},
	"broker/store": {"broker", "audit", "broker/postgres"}, // state and event in one transaction
	"providers":    {"broker", "providers/*"},
	"providers/*":  {"broker", "providers/awsclient"}, // what every AWS client of the process has in common
	"audit":        {"broker"},
	"migrations":   {"broker", "broker/postgres"},
	"openapi":      {"broker", "audit"},
	"docs":         {"openapi"}, // examples are clients
	"cmd":          {"broker", "broker/*", "providers", "providers/awsclient", "providers/sandbox", "audit", "migrations", "openapi"},
}

// shut lists what no room but its own may import outside tests, whatever doors say.
var shut = map[string]string{
	"broker/localpg/pgtest":  "is for tests",
	"providers/providertest": "is for tests",

	"audit/console/browsertest": "is for tests",
}

// brokerLibraries are the only modules the domain leans on.
var brokerLibraries = []string{"github.com/google/uuid"}

// roomOf names the room of a package path relative to the module.
func roomOf(pkg string) string {
	parts := strings.Split(pkg, "/")
	if len(parts) > 1 && (parts[0] == "broker" || parts[0] == "providers") {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

// trespasses returns what is wrong with the imports of non-test files, keyed by
// import path, as sentences that say what to do.
func trespasses(imports map[string][]string) []string {
	var wrong []string
	for _, path := range slices.Sorted(maps.Keys(imports)) {
		pkg, ours := strings.CutPrefix(path, module+"/")
		if !ours {
			continue
		}
		room := roomOf(pkg)
		open, known := doors[room]
		if !known {
			open, known = doors[filepath.Dir(room)+"/*"]
		}
		if !known {
			wrong = append(wrong, pkg+": the house has no such room; put it into "+strings.Join(slices.Sorted(maps.Keys(doors)), ", "))
			continue
		}
		for _, imported := range imports[path] {
			if reason := refuse(pkg, room, open, imported); reason != "" {
				wrong = append(wrong, pkg+" imports "+strings.TrimPrefix(imported, module+"/")+": "+reason)
			}
		}
	}
	return wrong
}

// refuse says why a package of a room may not have an import, or "".
func refuse(pkg, room string, open []string, imported string) string {
	target, ours := strings.CutPrefix(imported, module+"/")
	if !ours {
		first, _, _ := strings.Cut(imported, "/")
		if pkg == "broker" && strings.Contains(first, ".") && !slices.Contains(brokerLibraries, imported) {
			return "the domain imports the standard library and " + strings.Join(brokerLibraries, ", ") + " only"
		}
		return ""
	}
	to := roomOf(target)
	if why, ok := shut[target]; ok && to != room {
		return target + " " + why
	}
	if why, ok := shut[to]; ok && to != room {
		return to + " " + why
	}
	if to == room || slices.Contains(open, to) {
		return ""
	}
	if to != "providers/sandbox" && slices.Contains(open, filepath.Dir(to)+"/*") {
		return ""
	}
	switch {
	case to == "providers/sandbox":
		return "only cmd and tests name the sandbox: it must never be a default"
	case strings.HasPrefix(to, "providers/"):
		return "only providers.Open names a concrete provider"
	case filepath.Dir(room) == filepath.Dir(to) && strings.Contains(to, "/"):
		return "siblings never import each other; declare the interface you need and let cmd wire it"
	}
	if len(open) == 0 {
		return room + " imports nothing of ours"
	}
	return "imports run one way; of ours, " + room + " may import " + strings.Join(open, ", ")
}

func TestImportsRunOneWay(t *testing.T) {
	t.Parallel()
	// -e: what does not compile is for the compiler to say.
	cmd := exec.Command("go", "list", "-e", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) > 0 {
			imports[words[0]] = words[1:]
		}
	}
	if len(imports) < 2 {
		t.Fatalf("go list found only %v", imports)
	}
	for _, wrong := range trespasses(imports) {
		t.Error(wrong)
	}
}

// The rules above are worth what they refuse.
func TestTrespassesAreSeen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to, want string }{ // want "" is allowed
		{"broker", "context", ""},
		{"broker", "github.com/google/uuid", ""},
		{"broker", "github.com/jackc/pgx/v5", "standard library"},
		{"broker", "golang.org/x/sync/errgroup", "standard library"},
		{"broker", "./broker/policy", "imports nothing of ours"},
		{"broker", "./audit", "imports nothing of ours"},
		{"broker/policy", "./broker", ""},
		{"broker/policy", "go.yaml.in/yaml/v4", ""},
		{"broker/policy", "./broker/auth", "siblings"},
		{"broker/policy", "./audit", "one way"},
		{"broker/store", "./audit", ""},
		{"broker/store", "./audit/console", ""},
		{"broker/store", "./broker/store/db", ""},
		{"broker/store/db", "./broker/seal", "siblings"},
		{"broker/store", "./broker/seal", "siblings"},
		{"broker/seal", "./broker/store/db", "siblings"},
		{"broker/auth", "./openapi", "one way"},
		{"broker/store", "./broker/localpg/pgtest", "for tests"},
		{"broker/localpg/pgtest", "./broker/localpg", ""},
		{"audit", "./broker", ""},
		{"audit/console", "./audit", ""},
		{"audit", "./broker/store", "one way"},
		{"cmd/taskpass", "./audit/console/browsertest", "for tests"},
		{"audit/console", "./openapi", "one way"},
		{"providers", "./providers/aws", ""},
		{"providers", "./providers/sandbox", "sandbox"},
		{"providers", "./broker/seal", "one way"},
		{"providers/aws", "./broker", ""},
		{"providers/aws", "./providers/awsclient", ""},
		{"providers/awsclient", "./providers/aws", "providers.Open"},
		{"audit/publish", "./providers/awsclient", "providers.Open"},
		{"providers/aws", "./providers/gcp", "providers.Open"},
		{"providers/aws", "./providers/sandbox/aws", "sandbox"},
		{"providers/aws", "./providers", "one way"},
		{"providers/aws", "./broker/seal", "one way"},
		{"providers/aws", "./providers/providertest", "for tests"},
		{"providers/providertest", "./broker", ""},
		{"providers/sandbox", "./providers/sandbox/aws", ""},
		{"providers/sandbox/aws", "./providers/sandbox/model", ""},
		{"openapi", "./broker", ""},
		{"openapi", "./audit", ""},
		{"openapi", "./audit/console", ""},
		{"openapi", "./broker/policy", "one way"},
		{"openapi", "./providers", "one way"},
		{"openapi", "./cmd/taskpass", "one way"},
		{"migrations", "./broker", ""},
		{"migrations", "./broker/store", "one way"},
		{"migrations", "./broker/postgres", ""},
		{"broker/store", "./broker/postgres", ""},
		{"broker/seal", "./broker/postgres", "siblings"},
		{"broker/postgres", "./broker/store", "siblings"},
		{"docs/examples/client", "./openapi", ""},
		{"docs/examples/client", "./broker", "one way"},
		{"cmd/taskpass", "./broker/store", ""},
		{"cmd/taskpass", "./providers", ""},
		{"cmd/taskpass", "./providers/sandbox/aws", ""},
		{"cmd/taskpass", "./providers/aws", "providers.Open"},
		{"cmd/taskpass", "./broker/localpg/pgtest", "for tests"},
		{"internal/util", "fmt", "no such room"},
		{"pkg", "fmt", "no such room"},
	} {
		to := c.to
		if rest, ours := strings.CutPrefix(to, "./"); ours {
			to = module + "/" + rest
		}
		got := strings.Join(trespasses(map[string][]string{module + "/" + c.from: {to}}), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s imports %s: got %q, want %q", c.from, c.to, got, c.want)
		}
	}
}

const maxLines = 400

var (
	generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)
	leftOver  = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	opens     = regexp.MustCompile(`\b(pgx|pgxpool|pgconn|stdlib|sql)\.(Connect|ParseConfig|New\(|NewWithConfig|Open|Dial|RegisterConnConfig)`)
	sleeps    = regexp.MustCompile(`\btime\.Sleep\(`)

	// hasty finds a limit of less than a minute on a wait or on what was measured. A limit that a test is meant to run into
	// has a name that says so.
	hasty  = regexp.MustCompile(`(\btime\.After\(|\bcontext\.WithTimeout\(.*|\btime\.NewTimer\(|\b(limit|deadline) :?= time\.Now\(\)\.Add\(|\btime\.Since\(.*>=? *)(\d+ ?\* ?)?time\.(Second|Millisecond)\b`)
	bubble = regexp.MustCompile(`"testing/synctest"`) // time there is the test's own
)

// openers are the folders that may open connections to PostgreSQL: the one for all, and the kit for tests.
var openers = []string{"broker/postgres/", "broker/localpg/pgtest/"}

// haste returns where a test, or a kit for tests, depends on how fast the machine is.
func haste(name string, source []byte) []string {
	var wrong []string
	n := 0
	for line := range bytes.Lines(source) {
		n++
		if sleeps.Match(line) && !bubble.Match(source) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: wait for an event, or look at each tick of a ticker", name, n))
		}
		if hasty.Match(line) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: a busy machine needs more: give it a minute or two, or wait for an event", name, n))
		}
	}
	return wrong
}

// disorder returns what is wrong with one Go file that is no test.
func disorder(name string, source []byte) []string {
	if generated.Match(source) {
		return nil
	}
	var wrong []string
	if n := bytes.Count(source, []byte("\n")); n > maxLines {
		wrong = append(wrong, fmt.Sprintf("%s: %d lines, more than %d: split it by what it decides", name, n, maxLines))
	}
	n := 0
	for line := range bytes.Lines(source) {
		n++
		if leftOver.Match(line) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: do it, or open an issue", name, n))
		}
		if opens.Match(line) && !slices.ContainsFunc(openers, func(dir string) bool { return strings.HasPrefix(name, dir) }) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: broker/postgres opens every connection to the database", name, n))
		}
		if sleeps.Match(line) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: wait for an event, a context or a ticker, never a while", name, n))
		}
	}
	return wrong
}

func TestFilesAreInOrder(t *testing.T) {
	t.Parallel()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || path == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || path == "house_test.go" {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		isTest := strings.HasSuffix(name, "_test.go")
		if _, kit := shut[filepath.Dir(path)]; kit || isTest {
			for _, wrong := range haste(path, source) {
				t.Error(wrong)
			}
		}
		if isTest {
			return nil
		}
		for _, wrong := range disorder(path, source) {
			t.Error(wrong)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	starts  = regexp.MustCompile(`^\s*go \w|\bsync\.WaitGroup\b|\bgo func\b`)
	ownsOne = map[string]string{ // who starts goroutines without a broker.Group, and why a panic in one ends no process
		"broker/runner.go":                 "it is what recovers",
		"broker/flights.go":                "each call is Recovered",
		"broker/watch.go":                  "under Runner.Loop",
		"broker/store/commit.go":           "under Runner.Loop",
		"broker/store/notify.go":           "under Runner.Loop",
		"cmd/taskpass/node.go":             "under Runner.Loop; the other is net/http's Serve",
		"cmd/taskpass/serve.go":            "under Runner.Loop",
		"cmd/taskpass/tree.go":             "under Runner.Loop",
		"cmd/taskpass/stack.go":            "dev and demo: it is the process's own work",
		"broker/localpg/localpg.go":        "dev and demo: waits for PostgreSQL's end",
		"providers/providertest/fail.go":   "is for tests",
		"providers/providertest/ledger.go": "is for tests",
		"providers/providertest/mint.go":   "is for tests",
		"providers/providertest/revoke.go": "is for tests",
	}
)

// A panic in a goroutine ends the process unless somebody recovers it there: each is started by a broker.Group, whose waiter
// gets the panic, or runs under a broker.Runner (P11).
func TestGoroutinesRecover(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (path != "." && strings.HasPrefix(entry.Name(), ".") || entry.Name() == "sandbox" || entry.Name() == "browsertest"):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil || generated.Match(source) {
			return err
		}
		n := 0
		for line := range bytes.Lines(source) {
			if n++; starts.Match(line) {
				if seen[path] = true; ownsOne[path] == "" {
					t.Errorf("%s:%d: starts goroutines that nobody recovers: use broker.Group, or run it under a broker.Runner", path, n)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for path := range ownsOne {
		if !seen[path] {
			t.Errorf("%s starts no goroutine any more: take it off the list", path)
		}
	}
}

func TestDisorderIsSeen(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("var _ = 1\n", maxLines+1)
	for _, c := range []struct {
		source string
		want   int
	}{
		{"package a\n", 0},
		{long, 1},
		{"// Code generated by x. DO NOT EDIT.\n" + long, 0},
		{"package a\n// TO" + "DO(me): later\nfunc f() { time.Sleep(1) }\n", 2},
		{"package a\nvar ctx = context.TO" + "DO()\n", 1},
		{"package a\nvar a, _ = pgx.Connect(ctx, url)\nvar b, _ = pgxpool.New(ctx, url)\nvar c = pgxpool.NewWithConfig\n", 3},
		{"package a\nvar a, _ = pgconn.ParseConfig(url)\nvar b = stdlib.OpenDB(c)\nvar d, _ = sql.Open(\"pgx\", url)\n", 3},
		{"package a\nvar a, _ = postgres.Open(ctx, cfg)\nvar b = &sql.DB{}\nvar c pgx.ConnConfig\n", 0},
	} {
		if got := disorder("a.go", []byte(c.source)); len(got) != c.want {
			t.Errorf("%.60q: got %q, want %d", c.source, got, c.want)
		}
	}
	for source, want := range map[string]int{
		"limit := time.After(20 * time.Second)":                           1,
		"limit := time.After(time.Second)":                                1,
		"limit := time.After(2 * time.Minute)":                            0,
		"ctx, c := context.WithTimeout(t.Context(), 5*time.Second)":       1,
		"if took := time.Since(start); took > 400*time.Millisecond {":     1,
		"if took := time.Since(start); took < 400*time.Millisecond {":     0,
		"r.clock.Advance(10 * time.Second)":                               0,
		"time.Sleep(time.Millisecond)":                                    1,
		"import \"testing/synctest\"\nfunc f() { time.Sleep(time.Hour) }": 0,
	} {
		if got := haste("a_test.go", []byte(source)); len(got) != want {
			t.Errorf("%q: got %q, want %d", source, got, want)
		}
	}
}
