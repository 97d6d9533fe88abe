package config

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/awsclient"
)

// Audit is how the record's tree is signed, and where its checkpoints are published.
type Audit struct {
	Name    string       `yaml:"name"`               // of the log, such as taskpass.example/log: what a key is for
	Key     broker.Ref   `yaml:"key"`                // required; made by `taskpass audit key`
	OldKeys []broker.Ref `yaml:"old_keys,omitempty"` // sign too, while auditors change to the new key
	Publish []Publish    `yaml:"publish,omitempty"`  // absent: nowhere; then the database's owner can rewrite the record
}

// Publish is one place for checkpoints outside the database: a file, a hook or a bucket.
type Publish struct {
	File          string        `yaml:"file,omitempty"`          // absolute path; notes are appended
	HTTP          string        `yaml:"http,omitempty"`          // a URL that each note is posted to
	Authorization broker.Ref    `yaml:"authorization,omitempty"` // with http: the header's value
	S3            string        `yaml:"s3,omitempty"`            // s3://bucket or s3://bucket/prefix
	Region        string        `yaml:"region,omitempty"`        // with s3; absent: the SDK finds it
	Endpoint      string        `yaml:"endpoint,omitempty"`      // with s3: of a server that is not AWS
	FIPS          bool          `yaml:"fips,omitempty"`          // with s3: AWS's own endpoints with FIPS 140 cryptography
	ReadBack      *bool         `yaml:"read_back,omitempty"`     // with s3; false: what is there is not read at start, for the broker may only write
	Every         time.Duration `yaml:"every,omitempty"`         // at most one in this time, up to 1m; absent: each; with file 10s, with s3 1m
}

// AWS says how a bucket is reached. The SDK looks for credentials where it runs, and for a region that is not named.
func (p Publish) AWS() awsclient.Config {
	return awsclient.Config{Region: p.Region, Endpoint: p.Endpoint, FIPS: p.FIPS, Retries: true}
}

func (r *report) audit(a *Audit) {
	if a == nil {
		return
	}
	if !r.has("audit.name") {
		r.add("audit.name", "is required: the name of the log, such as taskpass.example/log")
	} else if err := tree.CheckOrigin(a.Name); err != nil {
		r.add("audit.name", "is not 1-128 visible ASCII characters without a +")
	}
	r.reference("audit.key", a.Key)
	for i, key := range a.OldKeys {
		r.reference(fmt.Sprintf("audit.old_keys[%d]", i), key)
	}
	for i, p := range a.Publish {
		r.publish(fmt.Sprintf("audit.publish[%d]", i), p)
	}
}

func (r *report) publish(at string, p Publish) {
	kinds := 0
	for _, kind := range []string{"file", "http", "s3"} {
		if r.has(at + "." + kind) {
			kinds++
		}
	}
	if kinds != 1 {
		r.add(at, "is not one of file, http and s3")
		return
	}
	for field, kind := range map[string]string{"authorization": "http", "region": "s3", "endpoint": "s3", "fips": "s3", "read_back": "s3"} {
		if r.has(at+"."+field) && !r.has(at+"."+kind) {
			r.add(at+"."+field, "belongs to %s", kind)
		}
	}
	if r.has(at + ".every") {
		r.upTo(at+".every", p.Every, time.Minute)
	}
	switch {
	case r.has(at + ".file"):
		r.filePath(at+".file", p.File)
	case r.has(at + ".http"):
		r.url(at+".http", p.HTTP, "http", "https")
		if r.has(at + ".authorization") {
			r.reference(at+".authorization", p.Authorization)
		}
	default:
		r.url(at+".s3", p.S3, "s3")
		switch { // servers that are not AWS call regions what they like
		case r.has(at+".region") && p.Endpoint == "" && !awsclient.ValidRegion(p.Region):
			r.add(at+".region", "is not a region such as eu-west-1")
		case strings.ContainsFunc(p.Region, func(c rune) bool { return c <= ' ' || c > '~' }):
			r.add(at+".region", "has white space, or a character that is not ASCII")
		}
		if r.has(at + ".endpoint") {
			r.url(at+".endpoint", p.Endpoint, "http", "https")
			if p.FIPS {
				r.add(at+".fips", "is for AWS's own endpoints, and endpoint names another")
			}
		}
	}
}

// url takes no password in it: a file of the configuration holds no secret.
func (r *report) url(path, text string, schemes ...string) {
	u, err := url.Parse(text)
	for _, s := range schemes {
		if err == nil && u.Scheme == s && u.Host != "" && u.User == nil && u.Fragment == "" && (s != "s3" || u.RawQuery == "") {
			return
		}
	}
	r.add(path, "is not a URL that begins with %s://, without a user or a password", strings.Join(schemes, ":// or "))
}
