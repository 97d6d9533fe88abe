package postgres_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
)

const canary = "S3CR3T-c4n4ry"

// What libpq would read in another way than its writer meant is refused. The error names the file and the fault, and
// repeats nothing.
func TestURLsThatAreRefused(t *testing.T) {
	t.Parallel()
	good := "postgres://taskpass:" + canary + "@127.0.0.1:1/tp?sslmode=disable"
	for what, c := range map[string]struct{ text, fault string }{
		"empty":                     {"", "is empty"},
		"byte order mark":           {"\ufeff" + good, "byte order mark"},
		"UTF-16":                    {"\xff\xfep\x00o\x00s\x00t\x00", "not UTF-8"},
		"a NUL":                     {good + "\x00", "not UTF-8"},
		"double quotes":             {`"` + good + `"`, "in quotes"},
		"single quotes":             {"'" + good + "'", "in quotes"},
		"typographic quotes":        {"“" + good + "”", "in quotes"},
		"a quote at the end":        {good + `"`, "ends with a quote"},
		"environment file":          {"DATABASE_URL=" + good, "NAME=value"},
		"shell":                     {"export TASKPASS_DATABASE_URL='" + good + "'", "NAME=value"},
		"keywords":                  {"host=127.0.0.1 port=1 user=u password=" + canary + " dbname=tp", "keyword=value"},
		"keywords without a user":   {"host=127.0.0.1 port=1 user= password=" + canary + " dbname=tp", "keyword=value"},
		"only a password":           {canary, "is not a URL"},
		"YAML":                      {"url: " + good, "is not a URL"},
		"another scheme":            {"mysql://u:" + canary + "@127.0.0.1/d", "is not a URL"},
		"JDBC":                      {"jdbc:postgresql://127.0.0.1/d?user=u&password=" + canary, "is not a URL"},
		"upper case":                {"POSTGRES://u:" + canary + "@127.0.0.1/d", "is not a URL"},
		"two lines":                 {good + "\n" + good, "white space"},
		"a blank":                   {"postgres://u:a b" + canary + "@127.0.0.1/d", "white space"},
		"a no-break space":          {"postgres://u:a\u00a0b" + canary + "@127.0.0.1/d", "white space"},
		"a zero-width space":        {"postgres://u:a\u200bb" + canary + "@127.0.0.1/d", "invisible"},
		"a mark in the middle":      {"postgres://u:\ufeff" + canary + "@127.0.0.1/d", "invisible"},
		"no user":                   {"postgres://127.0.0.1/d", "names no user"},
		"empty user":                {"postgres://:" + canary + "@127.0.0.1/d", "names no user"},
		"no host":                   {"postgres://u:" + canary + "@/d", "names no host"},
		"no host, only a port":      {"postgres://u:" + canary + "@:5432/d", "names no host"},
		"no host after a comma":     {"postgres://u:" + canary + "@a,/d", "names no host"},
		"empty host parameter":      {"postgres://u:" + canary + "@/d?host=", "names no host"},
		"no database":               {"postgres://u:" + canary + "@127.0.0.1", "names no database"},
		"an @ in the password":      {"postgres://u:pa@" + canary + "@127.0.0.1/d", "ambiguous"},
		"a / in the password":       {"postgres://u:12/" + canary + "@127.0.0.1/d", "ambiguous"},
		"a / and a ?":               {"postgres://u:12/d?sslmode=" + canary + "@127.0.0.1/d", "ambiguous"},
		"a bad port":                {"postgres://u:pw@127.0.0.1:" + canary + "/d", "cannot be used"},
		"a bad sslmode":             {"postgres://u:pw@127.0.0.1/d?sslmode=" + canary, "cannot be used"},
		"bad percents":              {"postgres://u:%zz" + canary + "@127.0.0.1/d", "cannot be used"},
		"half an address":           {"postgres://u:" + canary + "@[::1/d", "cannot be used"},
		"no certificate":            {"postgres://u:" + canary + "@h/d?sslmode=verify-full&sslrootcert=/none/" + canary, "file that cannot be read"},
		"a session's setting":       {"postgres://u:" + canary + "@h/d?search_path=x", "parameter that is none of"},
		"an unknown parameter":      {"postgres://u:" + canary + "@h/d?pasword=" + canary, "parameter that is none of"},
		"options":                   {"postgres://u:" + canary + "@h/d?options=-c%20search_path%3Dx", "parameter that is none of"},
		"a service":                 {"postgres://u:" + canary + "@h/d?service=x", "parameter that is none of"},
		"twice":                     {"postgres://u:" + canary + "@h/d?sslmode=disable&sslmode=require", "parameter twice"},
		"a standby":                 {"postgres://u:" + canary + "@h/d?target_session_attrs=standby", "cannot be written to"},
		"a name with a quote in it": {"postgres://u:" + canary + "@h/d?application_name=a'b", "application_name"},
	} {
		_, err := postgres.Connect(t.Context(), postgres.Config{URL: broker.NewSecret(c.text), From: "/run/secrets/url"})
		if _, ok := errors.AsType[postgres.Fault](err); !ok {
			t.Errorf("%s: %v; want a Fault", what, err)
			continue
		}
		text := fmt.Sprintf("%v %+v %#v %s", err, err, err, postgres.Reason(err))
		if !strings.Contains(text, "/run/secrets/url: the database URL ") || !strings.Contains(text, c.fault) || strings.Contains(text, canary) {
			t.Errorf("%s: %s; want the file, %q and no secret", what, text, c.fault)
		}
	}
}

// listener counts who connects, and answers nothing.
func listener(t *testing.T) (address string, heard func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all strings.Builder
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			first := make([]byte, 512)
			n, _ := io.ReadAtLeast(c, first, 8)
			mu.Lock()
			all.Write(first[:n])
			mu.Unlock()
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String(), func() string { mu.Lock(); defer mu.Unlock(); return all.String() }
}

// The PG* variables of the environment name another server: nothing goes there, and what the URL leaves out (the port)
// does not come from them.
func TestTheEnvironmentNamesNoServer(t *testing.T) {
	elsewhere, heard := listener(t)
	host, port, _ := net.SplitHostPort(elsewhere)
	for name, value := range map[string]string{
		"PGHOST": host, "PGPORT": port, "PGUSER": "other", "PGDATABASE": "other", "PGSSLMODE": "disable", "PGOPTIONS": "-c search_path=x",
		"PGTARGETSESSIONATTRS": "standby", "PGAPPNAME": "other", "PGTZ": "Asia/Tokyo",
	} {
		t.Setenv(name, value)
	}
	for _, url := range []string{
		canary, "host= password=" + canary, "postgres://u:" + canary + "@/d", "postgres://:" + canary + "@/d", "postgres://u:" + canary + "@:" + port + "/d",
		"postgres://u:" + canary + "@127.0.0.9/d?connect_timeout=1", // the default port of an address where nobody listens
	} {
		_, err := postgres.Connect(t.Context(), postgres.Config{URL: broker.NewSecret(url)})
		if err == nil || strings.Contains(postgres.Safe(err).Error(), canary) {
			t.Errorf("%v", err)
		}
	}
	if h := heard(); h != "" {
		t.Errorf("the server of the environment heard %q", h)
	}
	// The one that the URL names is asked, and is told user and database of the URL and no setting.
	here, heard := listener(t)
	_, err := postgres.Connect(t.Context(), postgres.Config{URL: broker.NewSecret("postgres://u:" + canary + "@" + here + "/d")})
	if h := heard(); !strings.Contains(h, "user\x00u\x00database\x00d\x00") && !strings.Contains(h, "database\x00d\x00user\x00u\x00") || len(h) > 40 {
		t.Errorf("the URL's server heard %q (%v)", h, err)
	}
}

// A server that takes a connection and says nothing, as one that hangs does, costs no more than the limit.
func TestAServerThatSaysNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the kernel takes connections into its queue
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: broker.NewSecret("postgres://u:pw@" + l.Addr().String() + "/d?sslmode=disable&connect_timeout=1")})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ask := func() error { return pool.QueryRow(t.Context(), "SELECT 1").Scan(new(int)) } // with no limit of the caller's
	for _, err := range []error{ask(), pool.Ping(t.Context())} {
		if err == nil || !strings.Contains(postgres.Reason(err), "no answer within the time limit") || !postgres.Starting(err) {
			t.Errorf("%v", err)
		}
	}
}

// The words of a driver repeat user, database and host: the filter replaces them wherever they were wrapped.
func TestSafeHidesTheDriversWords(t *testing.T) {
	t.Parallel()
	here, _ := listener(t)
	_, err := postgres.Connect(t.Context(), postgres.Config{URL: broker.NewSecret(
		"postgres://" + canary + ":pw@" + here + "," + canary + ".invalid:1/" + canary + "?sslmode=disable")})
	wrapped := fmt.Errorf("outer: %w", errors.Join(errors.New("first"), fmt.Errorf("second: %w", err)))
	if !strings.Contains(wrapped.Error(), canary) {
		t.Fatalf("the driver does not repeat the user: %v; this test shows nothing", wrapped)
	}
	safe := postgres.Safe(wrapped)
	if text := safe.Error(); strings.Contains(text, canary) || !strings.HasPrefix(text, "outer: first\nsecond: PostgreSQL cannot be reached: ") {
		t.Errorf("%s", text)
	}
	if !errors.Is(safe, err) {
		t.Error("the cause is lost")
	}
	if plain := errors.New("nothing of it"); postgres.Safe(plain) != plain || postgres.Safe(nil) != nil { //nolint:errorlint // the same one
		t.Error("what needs no filter is changed")
	}
}

// Time does not mend how a server does TLS, so nobody waits for it; a server that is starting is waited for, also where
// another host of the URL has such a fault.
func TestWhatTimeMends(t *testing.T) {
	t.Parallel()
	noTLS, silent := answering(t, "N"), answering(t, "")
	for _, c := range []struct {
		where, mode, reason string
		mends               bool
	}{
		{noTLS, "require", "the server offers no TLS, and the URL requires it (sslmode)", false},
		{noTLS, "verify-full", "the server offers no TLS", false},
		{noTLS, "prefer", "the connection failed or was cut", true},
		{noTLS + "," + silent, "require", "the server offers no TLS", true},
		{answering(t, "SHTTP/1.1 400 Bad Request\r\n"), "require", "TLS: what answers does not speak it", false},
		{answering(t, "S\x15\x03\x03\x00\x02\x02\x74"), "require", "TLS: the handshake was refused", false}, // certificate_required
		{silent, "require", "the connection failed or was cut", true},
		{"127.0.0.9:1", "require", "connection refused", true},
	} {
		_, err := postgres.Connect(t.Context(), postgres.Config{URL: broker.NewSecret("postgres://u:" + canary + "@" + c.where + "/d?sslmode=" + c.mode)})
		if postgres.Starting(err) != c.mends || !strings.Contains(postgres.Reason(err), c.reason) || strings.Contains(fmt.Sprint(postgres.Safe(err)), canary) {
			t.Errorf("%s %s: %v, %s", c.where, c.mode, postgres.Starting(err), postgres.Reason(err))
		}
	}
}

// answering is a server that takes what it is sent first, answers it, and hangs up.
func answering(t *testing.T, text string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(c, make([]byte, 8))
			_, _ = io.WriteString(c, text)
			if text != "" {
				_, _ = c.Read(make([]byte, 4096)) // else the answer is lost by a reset
			}
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// PGSERVICE cannot be overridden by a URL: it is refused by its name. A variable that cannot be read is no matter where the
// URL says the same.
func TestPGSERVICEIsRefused(t *testing.T) {
	good := postgres.Config{URL: broker.NewSecret("postgres://u:pw@127.0.0.9:1/d?sslmode=disable")}
	for name, value := range map[string]string{"PGPORT": "x", "PGTARGETSESSIONATTRS": "x", "PGCONNECT_TIMEOUT": "x", "PGSSLMODE": "x"} {
		t.Setenv(name, value)
	}
	pool, err := postgres.Open(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
	t.Setenv("PGSERVICE", canary)
	if _, err := postgres.Open(t.Context(), good); err == nil || !strings.Contains(err.Error(), "PGSERVICE") || strings.Contains(err.Error(), canary) {
		t.Errorf("%v", err)
	}
}
