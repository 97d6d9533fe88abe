package postgres

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// parameters are what a URL may set. Everything else would be sent to the server as a setting of the session, and those
// are Taskpass's own.
var parameters = []string{
	"user", "password", "host", "port", "dbname", "database", "passfile",
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslsni", "sslnegotiation", "sslcertmode",
	"channel_binding", "require_auth", "krbsrvname", "krbspn", "min_protocol_version", "max_protocol_version",
	"target_session_attrs", "connect_timeout", "application_name",
}

var (
	assignment = regexp.MustCompile(`^\s*(export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=`)
	authority  = regexp.MustCompile(`^[A-Za-z0-9._%,:\[\]\-]*$`)
	hostName   = regexp.MustCompile(`^(/[^@\x00]*|[A-Za-z0-9._:%\-]+)$`)
	plain      = regexp.MustCompile(`^[ !#-&(-\[\]-~]{0,63}$`) // printable ASCII that needs no quoting in SQL
)

// connConfig parses and configures. Its errors are Faults that name where the URL came from and repeat nothing of it.
func (cfg Config) connConfig() (*pgx.ConnConfig, error) {
	fault := func(reason string) Fault {
		if cfg.From != "" {
			return Fault(cfg.From + ": the database URL " + reason)
		}
		return Fault("the database URL " + reason)
	}
	wait := cfg.Statement + grace
	if cfg.Statement == 0 {
		cfg.Statement, wait = DefaultStatement, defaultWait
	}
	given, reason := check(cfg.URL.Reveal(), cfg.ReadOnly)
	if reason != "" {
		return nil, fault(reason)
	}
	if os.Getenv("PGSERVICE") != "" { // nothing in a URL takes its place
		return nil, Fault("PGSERVICE is set in the environment, and would add what its file holds to the database URL: unset it")
	}
	cc, err := pgx.ParseConfigWithOptions(given.complete(cfg.ReadOnly), pgx.ParseConfigOptions{
		ParseConfigOptions: pgconn.ParseConfigOptions{ConnStringAllowedKeys: parameters},
	})
	if _, file := errors.AsType[*fs.PathError](err); file {
		return nil, fault("names a certificate or key file that cannot be read")
	}
	if err != nil {
		return nil, fault("has a port or a parameter with a value that cannot be used (sslmode, a certificate, connect_timeout, …), " +
			"there or in a PG* variable of the environment")
	}
	name := given.query.Get("application_name")
	if name == "" {
		name = cfg.Name
	}
	if name == "" {
		name = "taskpass"
	}
	if !plain.MatchString(name) || !plain.MatchString(cfg.Role) {
		return nil, fault("has an application_name that is not 1 to 63 printable ASCII characters without quotes and backslashes")
	}
	cc.RuntimeParams = map[string]string{} // session sets all, and PGOPTIONS and PGTZ have no say
	dialer := net.Dialer{Timeout: cc.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	cc.DialFunc = dialer.DialContext
	if requiresTLS(&cc.Config) {
		cc.DialFunc = noticingNoTLS(dialer.DialContext)
	}
	cc.OnPgError = onError(nil)
	cc.Tracer = &limits{wait, cfg.Statement + grace, cc.ConnectTimeout*time.Duration(1+len(cc.Fallbacks)) + connectTimeout}
	bare := cc.Config.Copy()
	s := newSession(cfg, name)
	s.probe = func(ctx context.Context) (*pgconn.PgConn, error) { return pgconn.ConnectConfig(ctx, bare) }
	cc.AfterConnect = s.prepare
	return cc, nil
}

// target is a URL that passed check.
type target struct {
	text  string
	query url.Values
	hosts []string
	port  bool // it names one
}

// complete adds what the PG* variables of the environment would otherwise decide. With several hosts the one that can be
// written to is meant.
func (t target) complete(readOnly bool) string {
	more := url.Values{}
	if !t.port && len(t.hosts) == 1 {
		more.Set("port", "5432")
	}
	if !t.query.Has("target_session_attrs") {
		more.Set("target_session_attrs", "any")
		if len(t.hosts) > 1 && !readOnly {
			more.Set("target_session_attrs", "read-write")
		}
	}
	if !t.query.Has("connect_timeout") {
		more.Set("connect_timeout", "4")
	}
	if strings.Contains(t.text, "?") {
		return t.text + "&" + more.Encode()
	}
	return t.text + "?" + more.Encode()
}

// check takes a URL apart as libpq does, and refuses what libpq would read in another way than its writer meant: text
// that is no URL becomes keywords, what is missing comes from the environment or from defaults, and an unencoded
// character of the password moves the rest of it into the host or the database name.
func check(text string, readOnly bool) (t target, reason string) {
	if reason := form(text); reason != "" {
		return t, reason
	}
	rest := text[strings.Index(text, "://")+len("://"):]
	user, password := "", false
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		user, _, password = strings.Cut(rest[:i], ":")
		rest = rest[i+1:]
	}
	where, query, _ := strings.Cut(rest, "?")
	host, name, _ := strings.Cut(where, "/")
	const encode = "is ambiguous: in user, password and database write @ / ? # : % as %40 %2F %3F %23 %3A %25"
	if strings.Contains(rest, "@") || strings.ContainsAny(name, "/:") || !authority.MatchString(host) {
		return t, encode
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return t, encode
	}
	if reason := checkParameters(values, readOnly); reason != "" {
		return t, reason
	}
	t = target{text: text, query: values, port: values.Has("port")}
	for h := range strings.SplitSeq(host, ",") {
		h, port := cutPort(h)
		t.hosts, t.port = append(t.hosts, h), t.port || port
	}
	if values.Has("host") {
		t.hosts = strings.Split(values.Get("host"), ",")
	}
	for _, h := range t.hosts {
		if h == "" {
			return t, "names no host: it would be sent to whichever server the defaults name"
		}
		if !hostName.MatchString(h) {
			return t, encode
		}
	}
	switch {
	case user == "" && values.Get("user") == "":
		return t, "names no user"
	case user == "" && password:
		return t, "has a password without a user"
	case name == "" && values.Get("dbname") == "" && values.Get("database") == "":
		return t, "names no database"
	}
	return t, ""
}

// checkParameters refuses what is set after the URL's question mark and is not for whoever writes the URL to set.
func checkParameters(values url.Values, readOnly bool) (reason string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(parameters, key) {
			return "sets a parameter that is none of " + strings.Join(parameters, ", ") +
				"; settings of the session, such as statement_timeout or search_path, are made by Taskpass"
		}
		if len(values[key]) > 1 {
			return "sets a parameter twice"
		}
	}
	switch values.Get("target_session_attrs") {
	case "", "any", "read-write", "primary":
	default:
		if !readOnly {
			return "target_session_attrs asks for a server that cannot be written to: want read-write, primary or any"
		}
	}
	return ""
}

// cutPort is the host of host:port or [IPv6]:port, and whether there is a port.
func cutPort(h string) (host string, port bool) {
	if inner, ok := strings.CutPrefix(h, "["); ok {
		inner, after, _ := strings.Cut(inner, "]")
		return inner, strings.HasPrefix(after, ":")
	}
	host, _, port = strings.Cut(h, ":")
	return host, port
}

// form tells what a text is that is no URL, as far as it can be told without repeating it.
func form(text string) string {
	match := assignment.FindStringSubmatch(text)
	switch {
	case text == "":
		return "is empty"
	case strings.HasPrefix(text, "\ufeff"):
		return "begins with a byte order mark: save it as UTF-8 without one"
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return "is not UTF-8 text"
	case strings.ContainsRune(`"'`+"`“”‘’„«»", []rune(text)[0]):
		return "is in quotes: take them away"
	case match != nil && slices.Contains(append(parameters, "hostaddr", "options", "service"), match[2]):
		return "is in libpq's keyword=value form: write it as postgres://user:password@host:5432/database"
	case match != nil:
		return "is a line of an environment file, NAME=value: only the URL itself belongs there"
	case !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://"):
		return "is not a URL that begins with postgres:// or postgresql://"
	case strings.ContainsAny(text[len(text)-1:], "\"'`;"):
		return "ends with a quote or a semicolon: take it away"
	}
	for _, r := range text {
		if unicode.IsSpace(r) || !unicode.IsGraphic(r) {
			return "has white space or an invisible character in it: one URL, on one line; in a password, write it percent-encoded"
		}
	}
	return ""
}
