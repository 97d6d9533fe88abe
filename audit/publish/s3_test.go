package publish_test

import (
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/taskpass/taskpass/audit/publish"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// bucket is what S3 does with the few calls that are made of it.
type bucket struct {
	mu      sync.Mutex
	objects map[string]string
	deny    map[string]bool // HTTP methods; LIST is a GET of the bucket
	page    int
	calls   int
	portal  string // a page that a proxy answers to everything, with HTTP 200
}

func newBucket(t *testing.T) (*bucket, publish.S3) {
	t.Helper()
	b := &bucket{objects: map[string]string{}, deny: map[string]bool{}, page: 1000}
	server := httptest.NewServer(b)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(func() { transport.CloseIdleConnections(); server.Close() })
	to, err := publish.OpenS3("s3://b/log", aws.Config{Region: "eu-west-1", BaseEndpoint: &server.URL, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider("id", "key", ""), Retryer: func() aws.Retryer { return aws.NopRetryer{} }})
	if err != nil {
		t.Fatal(err)
	}
	return b, to
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	fail := func(status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>C4n4ry</Message></Error>", code)
	}
	key, method := strings.TrimPrefix(r.URL.Path, "/b/"), r.Method
	if method == http.MethodGet && r.URL.Query().Has("list-type") {
		method = "LIST"
	}
	_, there := b.objects[key]
	switch {
	case b.portal != "":
		w.Header().Set("ETag", `"of the page"`)
		_, _ = io.WriteString(w, b.portal)
	case b.deny[method]:
		fail(http.StatusForbidden, "AccessDenied")
	case r.Header.Get("Authorization") == "":
		fail(http.StatusBadRequest, "InvalidRequest")
	case method == "LIST":
		b.list(w, r.URL.Query().Get("prefix"), r.URL.Query().Get("start-after"))
	case method == http.MethodGet && there:
		_, _ = io.WriteString(w, b.objects[key])
	case method == http.MethodGet:
		fail(http.StatusNotFound, "NoSuchKey")
	case method != http.MethodPut || r.Header.Get("If-None-Match") != "*":
		fail(http.StatusBadRequest, "InvalidRequest")
	case there:
		fail(http.StatusPreconditionFailed, "PreconditionFailed")
	default:
		b.objects[key] = string(text)
		w.Header().Set("ETag", `"of the note"`)
	}
}

func (b *bucket) list(w io.Writer, prefix, after string) {
	type object struct{ Key string }
	var answer struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		IsTruncated bool
		Contents    []object
	}
	for _, key := range slices.Sorted(maps.Keys(b.objects)) {
		if !strings.HasPrefix(key, prefix) || key <= after {
			continue
		}
		if len(answer.Contents) == b.page {
			answer.IsTruncated = true
			break
		}
		answer.Contents = append(answer.Contents, object{key})
	}
	_ = xml.NewEncoder(w).Encode(answer)
}

// change is what somebody does in the bucket.
func (b *bucket) change(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
}

// The SDK speaks to the bucket: an object of its own for each checkpoint, never over another.
func TestS3(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	b, to := newBucket(t)
	c := sign(t, s, 42)
	for range 2 { // the answer to the first was lost
		if err := to.Put(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	key := "log/00000000000000000042-" + c.At.UTC().Format("20060102T150405.000000Z") + ".txt"
	if len(b.objects) != 1 || !strings.Contains(b.objects[key], c.Note) {
		t.Errorf("%q, want %q", b.objects, key)
	}
	b.change(func() { b.deny[http.MethodPut] = true })
	if err := to.Put(t.Context(), sign(t, s, 43)); err == nil || !strings.Contains(err.Error(), "AccessDenied: s3:PutObject is not permitted") || strings.Contains(err.Error(), "C4n4ry") {
		t.Errorf("%v", err)
	}
	for at, want := range map[string]string{"s3://b": "", "s3://b/": "", "s3://b/p": "p/", "s3://b/p/q/": "p/q/"} {
		if opened, err := publish.OpenS3(at, aws.Config{Region: "eu-west-1"}); err != nil || opened.Bucket != "b" || opened.Prefix != want {
			t.Errorf("%s: %+v, %v", at, opened, err)
		}
	}
	for _, at := range []string{"", "b", "https://b/p", "s3:///p"} {
		if _, err := publish.OpenS3(at, aws.Config{Region: "eu-west-1"}); err == nil {
			t.Errorf("%q is a bucket", at)
		}
	}
}

// What stands between the broker and the bucket takes no checkpoint, and shows no empty bucket.
func TestS3Portal(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	b, to := newBucket(t)
	if err := to.Put(t.Context(), sign(t, s, 1)); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{
		"<html><body>C4n4ry: log in</body></html>", "<!DOCTYPE html><p>C4n4ry", "<ListBucketResult/>", "<ListBucketResult><IsTruncated>false", "{}", " ",
	} {
		b.change(func() { b.portal = page })
		for what, err := range map[string]error{
			"PutObject":     to.Put(t.Context(), sign(t, s, 2)),
			"ListObjectsV2": func() error { _, err := to.Newest(t.Context(), s.Keys()); return err }(),
		} {
			if err == nil || strings.Contains(err.Error(), "C4n4ry") || !strings.Contains(err.Error(), "check proxies") {
				t.Errorf("%s, %q: %v", what, page, err)
				continue
			}
			if got := broker.VendorAnswers(err); len(got) != 1 || got[0].Action != what || got[0].Status != 200 || got[0].Vendor != "S3" {
				t.Errorf("%s, %q: %+v", what, page, got)
			}
		}
	}
	b.change(func() { b.portal, b.deny["LIST"] = "", true })
	_, err := to.Newest(t.Context(), s.Keys())
	if got := broker.VendorAnswers(err); len(got) != 1 || got[0] != (broker.VendorAnswer{Vendor: "S3", Action: "ListObjectsV2", Status: 403, Code: "AccessDenied"}) {
		t.Errorf("%+v of %v", got, err)
	}
}

// The newest is found in a few dozen calls, however many sizes and heartbeats there are and whatever lies beside them.
func TestS3IsReadBack(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	began := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	at := func(size int64, minute int) tree.Checkpoint {
		c, err := s.Sign(size, [32]byte{byte(size)}, began.Add(time.Duration(minute)*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for what, c := range map[string]struct {
		fill func(put func(tree.Checkpoint))
		want int64
		time int
	}{
		"nothing": {func(func(tree.Checkpoint)) {}, 0, 0},
		"one":     {func(put func(tree.Checkpoint)) { put(at(1, 0)) }, 1, 0},
		"some":    {func(put func(tree.Checkpoint)) { put(at(1, 0)); put(at(70, 1)); put(at(70, 2)); put(at(9, 3)) }, 70, 2},
		"many sizes": {func(put func(tree.Checkpoint)) {
			for i := range 300 {
				put(at(int64(i*i*i+1), i))
			}
		}, 299*299*299 + 1, 299},
		"a quiet log": {func(put func(tree.Checkpoint)) {
			put(at(2, 0))
			for i := range 300 {
				put(at(3, i))
			}
		}, 3, 299},
		"a huge one": {func(put func(tree.Checkpoint)) { put(at(1, 0)); put(at(1<<62, 1)) }, 1 << 62, 1},
		"the greatest": {func(put func(tree.Checkpoint)) {
			for i := range 40 {
				put(at(1<<63-1, i))
			}
		}, 1<<63 - 1, 39},
	} {
		for _, prefix := range []string{"log/", ""} {
			t.Run(what+" below "+strconv.Quote(prefix), func(t *testing.T) {
				t.Parallel()
				b, from := newBucket(t)
				from.Prefix, b.page = prefix, 10
				for _, stranger := range []string{"0", "0/x", "000/" + prefix, "1", "README", "00000000000000000099.txt", "zzz"} {
					b.objects[prefix+stranger] = "not ours"
				}
				c.fill(func(c tree.Checkpoint) { b.objects[from.Key(c)] = c.Note })
				list, err := from.Newest(t.Context(), s.Keys())
				if err != nil || (len(list) == 0) != (c.want == 0) {
					t.Fatalf("%v, %v", list, err)
				}
				if c.want > 0 && (list[0].Size != c.want || !list[0].At.Equal(at(1, c.time).At)) {
					t.Errorf("%d at %s, want %d", list[0].Size, list[0].At, c.want)
				}
				if b.calls > 150 {
					t.Errorf("%d calls", b.calls)
				}
			})
		}
	}
}

// Who may add to the bucket hides nothing: what does not open where the newest must be is an error, until somebody looks.
func TestS3AmongStrangers(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	b, from := newBucket(t)
	mine, theirs, old := sign(t, s, 50), sign(t, other, 60), sign(t, s, 5)
	pretended := old
	pretended.Size = 70
	for what, c := range map[string]struct{ key, note, want string }{
		"another log's":               {from.Key(theirs), theirs.Note, "a checkpoint that no known key has signed"},
		"an old one under a new name": {from.Key(pretended), old.Note, "a checkpoint of another name"},
		"over the newest":             {from.Key(mine), "x", "a checkpoint that no known key has signed"},
		"a huge one":                  {from.Key(pretended), strings.Repeat("x", 1<<20), "longer than any can be"},
	} {
		b.change(func() {
			clear(b.objects)
			b.objects[from.Key(mine)], b.objects[from.Key(old)] = mine.Note, old.Note
			b.objects[c.key] = c.note
		})
		if list, err := from.Newest(t.Context(), s.Keys()); err == nil || !strings.Contains(err.Error(), c.key) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", what, list, err)
		}
	}
}

// What is missing is named, and no text of the answer is repeated.
func TestS3MayNotBeRead(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	b, from := newBucket(t)
	c := sign(t, s, 50)
	b.objects[from.Key(c)] = c.Note
	for method, permission := range map[string]string{"LIST": "s3:ListBucket", "GET": "s3:GetObject"} {
		b.change(func() { clear(b.deny); b.deny[method] = true })
		_, err := from.Newest(t.Context(), s.Keys())
		if err == nil || !strings.Contains(err.Error(), "s3://b/log/: the bucket answered AccessDenied: "+permission+" is not permitted") || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("without %s: %v", permission, err)
		}
	}
}
