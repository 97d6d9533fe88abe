package migrations_test

import (
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"github.com/jackc/pgx/v5"
	"golang.org/x/text/unicode/norm"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/migrations"
)

// A password that clients change before they log in is refused before anything is done: the login would be made and
// nobody could use it.
func TestPasswordsThatClientsChange(t *testing.T) {
	t.Parallel()
	for what, password := range map[string]string{
		"a ligature": "pa\ufb00word", "a no-break space": "pass\u00a0word", "decomposed letters": "pa\u0308sswo\u0308rd",
		"a soft hyphen": "pass\u00adword", "zero width": "pass\u200bword", "a joiner": "pass\u200dword", "a mark": "\ufeffpassword",
		"a control": "pass\u0007word", "a tab": "pass\tword", "a newline": "pass\nword", "DEL": "pass\u007fword", "C1": "pass\u0085word",
		"full width": "\uff50\uff41\uff53\uff53", "a superscript": "pass\u00b2", "an ordinal": "pass\u00aa", "a Roman numeral": "pass\u2163",
		"a long s": "pa\u017fs", "an ij": "pa\u0133s", "an ideographic space": "pass\u3000word", "an en quad": "pass\u2000word",
		"right to left": "\u05d0pass", "Arabic digits": "\u0627\u0661", "a bidi mark": "pass\u202eword", "a tag": "pass\U000e0041word",
		"private use": "pass\ue000", "unassigned in Unicode 3.2": "pass\u0221", "newer than Unicode 3.2": "pass\U0001f512",
		"a variation selector": "pass\ufe0f", "a combining joiner": "pass\u034fword", "Hangul in pieces": "\u1100\u1161", "not UTF-8": "pass\xffword",
		"a replacement": "pass\ufffdword", "the Kelvin sign": "pass\u212a", "the Angstrom sign": "pass\u212b",
	} {
		l := login()
		l.Password = broker.NewSecret(password)
		// Nobody listens there: it is refused before the database is asked.
		err := migrations.Up(t.Context(), "postgres://u@127.0.0.1:1/d?connect_timeout=1", l)
		if err == nil || !strings.Contains(err.Error(), "SASLprep") || !strings.Contains(err.Error(), l.Name) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// All that is accepted logs in, with pgx and, where it is installed, with psql, whose libraries prepare passwords apart.
func TestPasswordsThatAreAccepted(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for r := '\u00a1'; r <= '\u021f'; r++ {
		if unicode.IsLetter(r) && norm.NFKC.IsNormalString(string(r)) {
			all.WriteRune(r)
		}
	}
	for r := '!'; r <= '~'; r++ {
		all.WriteRune(r)
	}
	db, l := pgtest.New(t), login()
	l.Password = broker.NewSecret(all.String())
	up(t, db, l)
	demandPassword(t, connect(t, db.AdminURL), l.Name)
	u, err := url.Parse(db.URL(l.Name))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(l.Name, l.Password.Reveal())
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatalf("pgx: %v", err)
	}
	conn.Close(t.Context())
	psql, err := exec.LookPath("psql")
	if err != nil {
		return
	}
	u.User = url.User(l.Name)
	cmd := exec.CommandContext(t.Context(), psql, "-XAtc", "SELECT 1", u.String())
	cmd.Env = append(cmd.Environ(), "PGPASSWORD="+l.Password.Reveal(), "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "1\n" {
		t.Errorf("psql: %v: %s", err, out)
	}
}

// Migrations make the schema where the service looks for it, whatever the defaults of the database are.
func TestDefaultsChangeNoMigration(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	admin := connect(t, db.AdminURL)
	for _, statement := range []string{
		"CREATE SCHEMA elsewhere", "GRANT ALL ON SCHEMA elsewhere TO PUBLIC",
		"ALTER DATABASE " + db.Name + " SET search_path = elsewhere", "ALTER DATABASE " + db.Name + " SET default_transaction_isolation = serializable",
		"ALTER DATABASE " + db.Name + " SET lock_timeout = '1ms'", "ALTER DATABASE " + db.Name + " SET standard_conforming_strings = off",
		"ALTER DATABASE " + db.Name + " SET idle_in_transaction_session_timeout = '1s'",
	} {
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	up(t, db, login())
	if read[bool](t, admin, "SELECT to_regclass('public.versions') IS NULL OR to_regclass('public.goose_db_version') IS NULL") {
		t.Error("the schema is not in public")
	}
	if n := read[int](t, admin, "SELECT count(*) FROM pg_class WHERE relnamespace = 'elsewhere'::regnamespace"); n > 0 {
		t.Errorf("%d relations are elsewhere", n)
	}
}
