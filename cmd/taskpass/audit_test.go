package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit/tree"
)

// signing adds an audit section to the configuration, and returns the public key and the file that is published to.
func (i *installation) signing() (public, published string) {
	i.t.Helper()
	key, published := filepath.Join(i.dir, "audit_key"), filepath.Join(i.dir, "checkpoints")
	public = strings.TrimSpace(must(i.t, "audit", "key", "taskpass.example/log", key).stdout)
	i.configure(func(s *settings) {
		s.TLS = fmt.Sprintf("audit: {name: taskpass.example/log, key: \"file:%s\", publish: [{file: \"%s\", every: 1s}]}", key, published)
	})
	return public, published
}

// sql runs statements as the database's superuser.
func (i *installation) sql(statements ...string) {
	i.t.Helper()
	conn, err := pgx.Connect(i.t.Context(), strings.TrimSpace(readFile(i.t, i.admin)))
	if err != nil {
		i.t.Fatal(err)
	}
	defer conn.Close(i.t.Context())
	for _, s := range statements {
		if tag, err := conn.Exec(i.t.Context(), s); err != nil || tag.RowsAffected() == 0 && (tag.Update() || tag.Delete()) {
			i.t.Fatalf("%s: %s, %v", s, tag, err)
		}
	}
}

// count is one number of the database.
func (i *installation) count(sql string) (n int) {
	i.t.Helper()
	conn, err := pgx.Connect(i.t.Context(), strings.TrimSpace(readFile(i.t, i.admin)))
	if err != nil {
		i.t.Fatal(err)
	}
	defer conn.Close(i.t.Context())
	if err := conn.QueryRow(i.t.Context(), sql).Scan(&n); err != nil {
		i.t.Fatal(err)
	}
	return n
}

func (i *installation) settled() {
	i.t.Helper()
	await(i.t, "all events are signed", func() bool {
		return i.count("SELECT (SELECT count(*) FROM events) - coalesce(max(size), 0) FROM tree_checkpoints") == 0
	})
}

// A service that signs, an auditor who verifies, an owner who alters: from the start to the alarm.
func TestAuditFromTheCommandLine(t *testing.T) {
	t.Parallel()
	i := install(t)
	public, published := i.signing()
	c, url := i.serve()
	for range 3 {
		mustCall(t, 201, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))
	}
	i.settled()
	service := filepath.Join(i.dir, "service_url")
	await(t, "the newest checkpoint is published", func() bool {
		newest := must(t, "audit", "checkpoint", "--key", public, "--database-url-file", service).stdout
		text, err := os.ReadFile(published)
		return err == nil && strings.Contains(string(text), newest)
	})
	metrics := mustCall(t, 200, "GET", url+"/metrics", "", "")
	for _, line := range []string{"taskpass_audit_tree_up 1", "taskpass_audit_tree_refused 0", "taskpass_audit_tree_lag_events 0"} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("no metric %q", line)
		}
	}
	note := mustCall(t, 200, "GET", url+"/v1/audit/checkpoint", i.tokens["aud"], "")
	if !strings.HasPrefix(note, "taskpass.example/log\n") {
		t.Errorf("the checkpoint is %q", note)
	}

	export := filepath.Join(i.dir, "export.ndjson")
	must(t, "audit", "export", "--out", export, "--key", public, "--database-url-file", service)
	offline := []string{"audit", "verify", "--key", public, "--checkpoint", published, "--events"}
	if r := must(t, append(offline, export)...); !strings.Contains(r.stdout, "\nverified\n") {
		t.Error(r)
	}
	online := []string{"audit", "verify", "--key", public, "--checkpoint", published, "--database-url-file", service}
	if r := must(t, online...); !strings.Contains(r.stdout, "\nverified\n") {
		t.Error(r)
	}
	if r := must(t, "audit", "verify", "--key", public, "--events", export); !strings.Contains(r.stdout, "No checkpoint of your own") {
		t.Errorf("without a checkpoint of one's own: %s", r)
	}
	mustFail(t, 1, nil, "audit", "export", "--out", export, "--key", public, "--database-url-file", service)

	// One byte of the export.
	text := readFile(t, export)
	writeFile(t, i.dir, "changed.ndjson", strings.Replace(text, `"agent_id":"a"`, `"agent_id":"b"`, 1))
	mustFail(t, 1, []string{"NOT VERIFIED: altered: event "}, append(offline, filepath.Join(i.dir, "changed.ndjson"))...)
	writeFile(t, i.dir, "cut.ndjson", text[:len(text)/2])
	mustFail(t, 1, []string{"NOT VERIFIED"}, append(offline, filepath.Join(i.dir, "cut.ndjson"))...)
	writeFile(t, i.dir, "api.ndjson", `{"id":"evt_1","at":"2026-01-01T00:00:00.000000Z","type":"task.ended"}`+"\n"+`{"end":true,"events":1}`+"\n")
	mustFail(t, 1, []string{"NOT VERIFIED", "what verify reads is made by `taskpass audit export`"}, append(offline, filepath.Join(i.dir, "api.ndjson"))...)
	stranger := strings.TrimSpace(must(t, "audit", "key", "taskpass.example/log", filepath.Join(i.dir, "other_key")).stdout)
	mustFail(t, 1, []string{"no checkpoint in it is signed by a key that you gave"}, "audit", "verify", "--key", stranger, "--checkpoint", published, "--events", export)
	mustFail(t, 1, []string{"that is a private key"}, "audit", "verify", "--key", filepath.Join(i.dir, "audit_key"), "--events", export)

	// The owner alters an event behind the broker's back.
	i.sql("UPDATE events SET at = at - interval '1 hour' WHERE xid = (SELECT max(xid::text::bigint)::text::xid8 FROM events)")
	mustFail(t, 1, []string{"NOT VERIFIED: re-dated: event "}, online...)
	i.sql("UPDATE events SET at = at + interval '1 hour' WHERE xid = (SELECT max(xid::text::bigint)::text::xid8 FROM events)")
	must(t, online...)

	// The owner takes a guard away, and hides events from searches by time.
	i.sql("ALTER TABLE versions DISABLE TRIGGER versions_diagram", "GRANT UPDATE ON events TO PUBLIC")
	mustFail(t, 1, []string{"the database's guards: NOT VERIFIED: table events: not of the migrations: PUBLIC may UPDATE"}, online...)
	i.sql("ALTER TABLE versions ENABLE TRIGGER versions_diagram", "REVOKE UPDATE ON events FROM PUBLIC")
	must(t, online...)
	i.sql("UPDATE event_stretches SET earliest = '-infinity' WHERE level = 0")
	mustFail(t, 1, []string{"NOT VERIFIED: times: "}, online...)
	i.sql("UPDATE event_stretches SET earliest = 'infinity' WHERE level = 0")
	must(t, online...)

	// The owner cuts off the end, and all that the database knows of it.
	c.stop()
	i.sql("DELETE FROM events WHERE xid = (SELECT max(xid::text::bigint)::text::xid8 FROM events)",
		"DELETE FROM tree_leaves WHERE (xid, seq) NOT IN (SELECT xid, seq FROM events)", "DELETE FROM tree_checkpoints WHERE size > (SELECT count(*) FROM tree_leaves)")
	mustFail(t, 1, []string{"NOT VERIFIED: truncated: events "}, online...)
	_, url = i.serve()
	await(t, "the alarm is on the record", func() bool { return i.count("SELECT count(*) FROM events WHERE type = 'audit.tampered'") == 1 })
	if m := mustCall(t, 200, "GET", url+"/metrics", "", ""); !strings.Contains(m, "\ntaskpass_audit_tree_refused 1\n") {
		t.Error("no metric says so")
	}
	mustCall(t, http.StatusCreated, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, "")) // issuing goes on
}

// A bucket that is away when the broker starts keeps it from signing, and not from issuing; when it is back, what is on the
// record is signed and published. Where it need not be read, nobody waits for it.
func TestServeWaitsForItsBucket(t *testing.T) { // alone: the SDK takes its credentials from the environment
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "key")
	var open atomic.Bool
	published := make(chan string, 100)
	bucket := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut:
			w.Header().Set("ETag", `"of the checkpoint"`)
			published <- r.URL.Path
		case !open.Load():
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code></Error>")
		default:
			_, _ = io.WriteString(w, "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>")
		}
	}))
	defer bucket.Close()
	for _, readBack := range []bool{true, false} {
		i := install(t)
		i.signing()
		i.configure(func(s *settings) {
			s.TLS = fmt.Sprintf("audit: {name: taskpass.example/log, key: \"file:%s/audit_key\", publish: [{s3: \"s3://b/log\", region: r, endpoint: %s, every: 1s, read_back: %v}]}", i.dir, bucket.URL, readBack)
		})
		open.Store(false)
		c, url := i.serve()
		mustCall(t, 201, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))
		if readBack {
			said := c.awaitLine("the audit tree waits: it will be tried again", 0)
			if want := "s3://b/log/: the bucket answered AccessDenied: s3:ListBucket is not permitted"; !strings.Contains(fmt.Sprint(said["error"]), want) {
				t.Errorf("the log says %v, not %q", said, want)
			}
			if n := i.count("SELECT (SELECT count(*) FROM tree_checkpoints) + (SELECT count(*) FROM tree_leaves)"); n != 0 {
				t.Errorf("%d checkpoints and leaves while the bucket cannot be read", n)
			}
			if m := mustCall(t, 200, "GET", url+"/metrics", "", ""); strings.Contains(m, "\ntaskpass_audit_tree_lag_events 0\n") {
				t.Error("no metric shows that something waits")
			}
			open.Store(true)
		}
		if at := <-published; !strings.HasPrefix(at, "/b/log/0000000000") {
			t.Errorf("published as %s", at)
		}
		i.settled()
		c.stop()
	}
}

// An interrupted verify once exited with 0, as if all had been verified; an interrupted archive as if all were archived.
func TestInterruptedIsNotDone(t *testing.T) {
	t.Parallel()
	_, admin, service := migrated(t)
	public := strings.TrimSpace(must(t, "audit", "key", "taskpass.example/log", filepath.Join(t.TempDir(), "key")).stdout)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for _, args := range [][]string{
		{"audit", "verify", "--key", public, "--database-url-file", service},
		{"audit", "export", "--key", public, "--out", filepath.Join(t.TempDir(), "export"), "--database-url-file", service},
		{"audit", "archive", "--key", public, "--before", "2020-01", "--out", t.TempDir(), "--database-url-file", admin},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(ctx, args, strings.NewReader(""), &stdout, &stderr); code != 1 || stderr.Len() == 0 || strings.Contains(stdout.String(), "verified") {
			t.Errorf("%q: exit code %d, %s%s", args, code, &stdout, &stderr)
		}
	}
}

// Whoever can write events can name them as they like: nothing of that reaches the terminal unseen.
func TestVerdictShowsWhatNobodySees(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := verdict(&out, "the database", tree.Report{Faults: []tree.Fault{{What: tree.Inserted, EventID: "evt\x1b[2J\u202e\u00ad\nverified"}}}, nil)
	if err == nil || !strings.Contains(out.String(), `evt\u001b[2J\u202e\u00ad\u000averified`) {
		t.Errorf("%q, %v", &out, err)
	}
}

// A record in which nothing is yet once had the events 0 to -1.
func TestVerdictOnNothing(t *testing.T) {
	t.Parallel()
	for want, report := range map[string]tree.Report{
		"x: no events of a tree of 0; 0 read,":     {},
		"x: events 2 to 2 of a tree of 3; 1 read,": {Header: tree.Header{From: 2, To: 3, Size: 3}, Events: 1, Proven: 3},
	} {
		var said bytes.Buffer
		if err := verdict(&said, "x", report, nil); err != nil || !strings.HasPrefix(said.String(), want) {
			t.Errorf("%v, %s; want %s", err, &said, want)
		}
	}
}

func TestAuditKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	r := must(t, "audit", "key", "taskpass.example/log", path)
	if !strings.HasPrefix(r.stdout, "taskpass.example/log+") || strings.Contains(r.stdout+r.stderr, "PRIVATE") {
		t.Error(r)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if again := must(t, "audit", "public", path); again.stdout != r.stdout {
		t.Errorf("the public half is %s, was %s", again.stdout, r.stdout)
	}
	mustFail(t, 1, []string{"no signing key"}, "audit", "public", writeFile(t, t.TempDir(), "x", "C4n4ry"))
	before := readFile(t, path)
	mustFail(t, 1, nil, "audit", "key", "taskpass.example/log", path)
	if readFile(t, path) != before {
		t.Error("it was written over")
	}
	mustFail(t, 1, []string{"the name of a log"}, "audit", "key", "a b", path+"2")
}

// serve refuses what it could not sign with, and a published file that is not its own.
func TestServeRefusesABadAuditSection(t *testing.T) {
	t.Parallel()
	i := install(t)
	_, published := i.signing()
	writeFile(t, i.dir, "checkpoints", "somebody else's\n")
	mustFail(t, 1, []string{"audit.publish[0]: " + published, "no checkpoint in it"}, "serve", "--config", i.config)
	if err := os.Remove(published); err != nil {
		t.Fatal(err)
	}
	must(t, "audit", "key", "other.example/log", filepath.Join(i.dir, "other"))
	if err := os.Rename(filepath.Join(i.dir, "other"), filepath.Join(i.dir, "audit_key")); err != nil {
		t.Fatal(err)
	}
	mustFail(t, 1, []string{"audit.key: signing key 1 is for a log of another name"}, "serve", "--config", i.config)
	writeFile(t, i.dir, "audit_key", "C4n4ry")
	if r := mustFail(t, 1, []string{"audit.key: signing key 1 is none"}, "serve", "--config", i.config); strings.Contains(r.stderr, "C4n4ry") {
		t.Error(r)
	}
}

// The login that migrate makes for auditors verifies and exports, and does nothing else.
func TestAuditorLogin(t *testing.T) {
	t.Parallel()
	i := install(t)
	public, published := i.signing()
	password := writeFile(t, i.dir, "password", "C4n4ry-of-the-auditor\n")
	r := must(t, "migrate", "--database-url-file", i.admin, "--auditor-login", cliLogin+"_auditor", "--auditor-password-file", password)
	if strings.Contains(r.String(), "C4n4ry") {
		t.Error(r)
	}
	u, err := url.Parse(strings.TrimSpace(readFile(t, i.admin)))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(cliLogin+"_auditor", "C4n4ry-of-the-auditor")
	auditor := writeFile(t, i.dir, "auditor_url", u.String())
	c, _ := i.serve()
	i.settled()
	c.stop()
	must(t, "audit", "verify", "--key", public, "--checkpoint", published, "--database-url-file", auditor)
	must(t, "audit", "export", "--key", public, "--out", filepath.Join(i.dir, "export"), "--database-url-file", auditor)
	mustFail(t, 1, []string{"trace takes the service's login, or a broker (--url)"}, "audit", "trace", "x", "--database-url-file", auditor)
	mustFail(t, 1, nil, "token", "list", "--database-url-file", auditor)
	mustFail(t, 1, nil, "token", "create", "--role", "auditor", "--name", "x", "--database-url-file", auditor)
	mustFail(t, 1, nil, "audit", "archive", "--before", "2020-02", "--out", i.dir, "--key", public, "--database-url-file", auditor)
	mustFail(t, 1, []string{"may not be the service's"}, "migrate", "--database-url-file", i.admin, "--auditor-login", "x", "--service-login", "x")
}

// The service sees to it that searches by time stay quick.
func TestServeNotesTimes(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.sql(`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		SELECT 'evt_' || n, now(), 'x', 'c', '', '', '', '', '', '{}', '{}' FROM generate_series(1, 600) n`)
	c, _ := i.serve()
	await(t, "the times of two stretches are noted beside the first one, which is empty", func() bool {
		return i.count("SELECT count(*) FROM event_stretches WHERE level = 0") == 3
	})
	c.stop()
}

// What is no month was once compared as a word: 2020-1 came after 2020-02, and zzz after all, without an error.
func TestAuditArchiveRefusesWhatIsNoMonth(t *testing.T) {
	t.Parallel()
	_, admin, _ := migrated(t)
	public := strings.TrimSpace(must(t, "audit", "key", "taskpass.example/log", filepath.Join(t.TempDir(), "key")).stdout)
	for before, c := range map[string]struct {
		code int
		says string
	}{
		"2020-1": {2, "--before"}, "zzz": {2, "--before"}, "2020-13": {2, "--before"}, "2020-01-01": {2, "--before"}, "": {2, "--before"},
		"2999-01":                          {1, "what is before 2999-01 is not over"},
		time.Now().UTC().Format("2006-01"): {0, ""},
	} {
		args := []string{"audit", "archive", "--before=" + before, "--out", t.TempDir(), "--key", public, "--database-url-file", admin}
		if c.code == 0 {
			must(t, args...)
		} else {
			mustFail(t, c.code, []string{c.says}, args...)
		}
	}
}

// The owner moves what is old out of the database.
func TestAuditArchive(t *testing.T) {
	t.Parallel()
	i := install(t)
	public, _ := i.signing()
	// The month has no partition: it is given one first.
	i.sql(`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body) VALUES
			('evt_old', '2020-01-05T00:00:00Z', 'x', 'c', '', '', '', '', '', '{}', '{"id":"evt_old","at":"2020-01-05T00:00:00.000000Z","type":"x","caller":{"name":"c"}}')`,
		`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
			SELECT 'evt_' || n, '2020-02-05T00:00:00Z', 'x', 'c', '', '', '', '', '', '{}', '{"id":"evt_' || n || '","at":"2020-02-05T00:00:00.000000Z","type":"x","caller":{"name":"c"}}'
			FROM generate_series(1, 200) n`)
	c, url := i.serve()
	i.settled()
	if m := mustCall(t, 200, "GET", url+"/metrics", "", ""); !strings.Contains(m, "\ntaskpass_audit_unsettled_bytes ") || strings.Contains(m, "\ntaskpass_audit_unsettled_bytes 0\n") {
		t.Error("no metric shows that a month has no partition")
	}
	c.stop()
	service := filepath.Join(i.dir, "service_url")
	archive := []string{"audit", "archive", "--before", "2020-02", "--out", i.dir, "--key", public, "--database-url-file"}
	mustFail(t, 1, nil, append(archive, service)...) // the service's login is not the owner
	r := must(t, append(archive, i.admin)...)
	file := filepath.Join(i.dir, "audit-2020-01.ndjson")
	if !strings.Contains(r.stdout, "2020-01: 1 events moved into a partition") || !strings.Contains(r.stdout, "2020-01: 1 events in "+file) || i.count("SELECT count(*) FROM events WHERE id = 'evt_old'") != 0 {
		t.Error(r)
	}
	must(t, "audit", "verify", "--key", public, "--events", file)
	verify := []string{"audit", "verify", "--key", public, "--database-url-file", service}
	must(t, append(verify, "--archive", file)...)
	mustFail(t, 1, []string{"NOT VERIFIED: events 2 to 2 are said to be archived"}, verify...)
	must(t, append(verify, "--accept-archived")...)

	// A disk that is full in the middle of the export: nothing leaves the database, and nothing is left on the disk.
	out := t.TempDir()
	archive = []string{"audit", "archive", "--before", "2020-03", "--out", out, "--key", public, "--database-url-file", i.admin}
	full := exec.CommandContext(t.Context(), "bash", append([]string{"-c", `ulimit -f 8 && exec "$0" "$@"`, os.Args[0]}, archive...)...) // files of 8 KiB
	full.Env = append(os.Environ(), asCommand+"=1")
	said, err := full.CombinedOutput()
	if full.ProcessState.ExitCode() != 1 || !strings.Contains(string(said), "2020-02 stays where it is: write ") || !strings.Contains(string(said), "file too large") {
		t.Errorf("on a full disk: %v\n%s", err, said)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 0 || i.count("SELECT count(*) FROM events WHERE at < '2020-03-01Z'") != 200 {
		t.Errorf("on a full disk: %v, %v", left, err)
	}
	must(t, archive...)
	verify = append(verify, "--archive", filepath.Join(out, "audit-2020-02.ndjson"))
	must(t, append(verify, "--archive", file)...)

	// A wrong clock brings an event of a month that left: it follows into another file, and verify takes both.
	i.sql(`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body) VALUES
			('evt_late', '2020-01-15T00:00:00Z', 'x', 'c', '', '', '', '', '', '{}', '{"id":"evt_late","at":"2020-01-15T00:00:00.000000Z","type":"x","caller":{"name":"c"}}')`)
	c, _ = i.serve()
	await(t, "the late event is signed", func() bool {
		return i.count("SELECT count(*) FROM tree_checkpoints WHERE size > (SELECT idx FROM tree_leaves WHERE event_id = 'evt_late')") > 0
	})
	c.stop()
	must(t, archive...)
	verify = append(verify, "--archive", file)
	mustFail(t, 1, []string{"are said to be archived"}, verify...)
	verify = append(verify, "--archive", filepath.Join(out, "audit-2020-01-2.ndjson"))
	must(t, verify...)

	// An owner who removes an event, and says that its month was archived.
	i.sql(`INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM'), 1, 2, 1, 2, sha256('')`,
		`DELETE FROM events WHERE (xid, seq) = (SELECT xid, seq FROM tree_leaves WHERE idx = 1)`)
	mustFail(t, 1, []string{"NOT VERIFIED: events 1 to 1 are said to be archived"}, verify...)
}
