//go:build peers

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/publish"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/providers/awsclient"
)

const (
	peerCheckpoints = "checkpoints" // a bucket with object lock
	peerOrigin      = "taskpass.example/log"
)

// publishes puts checkpoints into a bucket of a server that is not ours, with the SDK as `serve` opens it.
func (p peers) publishes(t *testing.T) {
	owner := p.owner().s3()
	if _, err := owner.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(peerCheckpoints), ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: aws.String(peerCheckpoints),
		ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: &types.ObjectLockRule{
			DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeCompliance, Days: aws.Int32(1)}}}}); err != nil {
		t.Fatal(err)
	}
	private, _, err := tree.NewKey(peerOrigin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tree.NewSigner(peerOrigin, private)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("EachOnceAndForGood", func(t *testing.T) { p.publishesOnce(t, signer) })
	t.Run("ReadsBackTheNewest", func(t *testing.T) { p.readsBack(t, signer) })
	t.Run("SaysWhatIsWrong", func(t *testing.T) { p.publishingFails(t, signer) })
	t.Run("HoldsTheDatabaseToIt", p.publishedHolds)
}

// bucket opens a bucket as the configuration does, with the credentials of the environment.
func (p peers) bucket(t *testing.T, who peerAgent, at string) publish.S3 {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", who.id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", who.key)
	t.Setenv("AWS_SESSION_TOKEN", who.token)
	client, err := awsclient.Load(t.Context(), config.Publish{Region: peerRegion, Endpoint: p.url}.AWS())
	if err != nil {
		t.Fatal(err)
	}
	b, err := publish.OpenS3(at, client.Config)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func peerSign(t *testing.T, s *tree.Signer, size int64, root string, at time.Time) tree.Checkpoint {
	t.Helper()
	c, err := s.Sign(size, tlog.RecordHash([]byte(root)), at)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// publishesOnce: a repeated Put does no harm, no other note takes the first one away, and object lock keeps the bucket's
// own owner from doing that. RGW 16 takes no notice of If-None-Match, and so has a version for each Put.
func (p peers) publishesOnce(t *testing.T, signer *tree.Signer) {
	to, now := p.bucket(t, p.owner(), "s3://"+peerCheckpoints+"/once"), time.Now()
	c := peerSign(t, signer, 42, "mine", now)
	for range 2 {
		allowed(t, "publishing", to.Put(t.Context(), c))
	}
	other := peerSign(t, signer, 42, "another", now) // under the same name
	allowed(t, "publishing another under the same name", to.Put(t.Context(), other))
	owner := p.owner().s3()
	list, err := owner.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: aws.String(peerCheckpoints), Prefix: aws.String("once/")})
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	for _, v := range list.Versions {
		out, err := owner.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(peerCheckpoints), Key: v.Key, VersionId: v.VersionId})
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(out.Body)
		if err != nil {
			t.Fatal(err)
		}
		notes = append(notes, string(text))
		_, err = owner.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(peerCheckpoints), Key: v.Key, VersionId: v.VersionId})
		refused(t, "the owner deletes what is locked", err)
	}
	if last := notes[len(notes)-1]; last != c.Note { // the oldest version comes last
		t.Errorf("the first is lost: %q", notes)
	}
}

// readsBack finds the newest of more than one page of objects.
func (p peers) readsBack(t *testing.T, signer *tree.Signer) {
	to, now := p.bucket(t, p.owner(), "s3://"+peerCheckpoints+"/many/of"), time.Now().UTC().Truncate(time.Second)
	if list, err := to.Newest(t.Context(), signer.Keys()); err != nil || len(list) != 0 {
		t.Errorf("before the first: %v, %v", list, err)
	}
	const sizes, beats = 600, 600
	var wg sync.WaitGroup
	todo := make(chan tree.Checkpoint)
	for range 8 {
		wg.Go(func() {
			for c := range todo {
				allowed(t, "publishing", to.Put(t.Context(), c))
			}
		})
	}
	for i := range sizes + beats {
		todo <- peerSign(t, signer, int64(min(i+1, sizes))*1000, "r", now.Add(time.Duration(i)*time.Minute))
	}
	close(todo)
	wg.Wait()
	list, err := to.Newest(t.Context(), signer.Keys())
	if err != nil || len(list) != 1 || list[0].Size != sizes*1000 || !list[0].At.Equal(now.Add((sizes+beats-1)*time.Minute)) {
		t.Errorf("the newest is %v, %v", list, err)
	}
}

// publishingFails: a bucket that is missing, credentials that are wrong or may not. No error has more than S3's code.
func (p peers) publishingFails(t *testing.T, signer *tree.Signer) {
	wrong := p.owner()
	wrong.key = strings.ToLower(wrong.key)
	agent := p.agent(p.issue(t, peerA, "write:content").Secret)
	c := peerSign(t, signer, 7, "mine", time.Now())
	for what, f := range map[string]struct {
		who       peerAgent
		at        string
		put, read string
	}{
		"no such bucket": {p.owner(), "s3://nobody-made-it/log", "the bucket answered NoSuchBucket", "s3://nobody-made-it/log/: the bucket answered NoSuchBucket"},
		"a wrong key":    {wrong, "s3://" + peerCheckpoints, "the bucket answered AccessDenied", "s3://checkpoints/: the bucket answered AccessDenied"},
		"no permission":  {agent, "s3://" + peerCheckpoints, "AccessDenied: s3:PutObject is not permitted", "AccessDenied: s3:ListBucket is not permitted"},
		"may only write": {agent, "s3://" + peerBucket + "/tasks/" + peerA, "", "AccessDenied: s3:ListBucket is not permitted"},
	} {
		to := p.bucket(t, f.who, f.at)
		says := func(err error, want string) {
			t.Helper()
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
		}
		says(to.Put(t.Context(), c), f.put)
		_, err := to.Newest(t.Context(), signer.Keys())
		says(err, f.read)
	}
}

// publishedHolds: a whole service publishes to the bucket; while it is down the owner of the database cuts the record, and
// the next process refuses it, for the bucket knows better. The files are gone: only the bucket can tell.
func (p peers) publishedHolds(t *testing.T) {
	p.bucket(t, p.owner(), "s3://"+peerCheckpoints) // its environment is the service's
	b := installPeerBroker(t, p.peerRGW, peerRole)
	b.command(t, "audit", "key", peerOrigin, b.file("audit_key"))
	b.yaml += fmt.Sprintf("audit: {name: %s, key: \"file:$DIR/audit_key\", publish: [{s3: \"s3://%s/service\", region: $REGION, endpoint: $RGW, every: 1s}]}\n", peerOrigin, peerCheckpoints)
	config := b.configure(t, "node", "127.0.0.1:8080", p.url)
	count := func(sql string) (n int64) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), strings.TrimSpace(readFile(t, b.file("admin_url"))))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	metric := func(url, line string) bool {
		answer, err := http.Get(url + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return err == nil && strings.Contains(string(text), "\n"+line+"\n")
	}
	for range 2 { // the second process reads back what the first has published
		t.Run("Serves", func(t *testing.T) {
			url := b.start(t, config)
			eventually(t, "all that is on the record is published", func() bool {
				return metric(url, fmt.Sprintf("taskpass_audit_published_size{to=\"0:s3\"} %d", count("SELECT count(*) FROM events")))
			})
		})
	}
	count(`WITH cut AS (DELETE FROM events RETURNING 1), leaves AS (DELETE FROM tree_leaves RETURNING 1), signed AS (DELETE FROM tree_checkpoints RETURNING 1)
		SELECT count(*) FROM cut`)
	t.Run("Refuses", func(t *testing.T) {
		url := b.start(t, config)
		eventually(t, "the cut record is refused", func() bool { return metric(url, "taskpass_audit_tree_refused 1") })
		if n := count("SELECT count(*) FROM tree_checkpoints"); n != 0 {
			t.Errorf("%d checkpoints are signed", n)
		}
	})
}
