package aws

import (
	"bytes"
	"crypto/md5" //nolint:gosec // the ETag of a plain object is its MD5
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type object struct {
	body        []byte // never changed in place
	contentType string
	modified    time.Time
	meta        http.Header // X-Amz-Meta-…
}

func (o object) etag() string {
	sum := md5.Sum(o.body) //nolint:gosec // as above
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// plainParams are query parameters that pick no other operation. With any other one
// (acl, uploads, versionId …) the request is not what its method and path say.
var plainParams = map[string][]string{
	"ListObjectsV2": {"x-id", "list-type", "prefix", "delimiter", "max-keys", "continuation-token", "start-after", "encoding-type", "fetch-owner"},
	"ListBuckets":   {"x-id", "max-buckets"},
	"":              {"x-id"},
}

// unsupportedHeaders on a PUT would make it a copy or a conditional write.
var unsupportedHeaders = []string{"X-Amz-Copy-Source", "If-None-Match", "If-Match", "X-Amz-Tagging", "X-Amz-Acl"}

// s3Action tells the operation from method, path and query. What the stand-in does
// not have is refused: to treat "?acl" as a read of the object would be wrong twice.
func s3Action(c *call) (string, *apiError) {
	bucket, key := splitPath(c.URL.Path)
	query := c.URL.Query()
	action := map[string]string{
		http.MethodGet: "GetObject", http.MethodHead: "HeadObject",
		http.MethodPut: "PutObject", http.MethodDelete: "DeleteObject",
	}[c.Method]
	switch {
	case bucket == "" && c.Method == http.MethodGet:
		action = "ListBuckets"
	case key == "" && c.Method == http.MethodGet && query.Get("list-type") == "2":
		action = "ListObjectsV2"
	case key == "" && c.Method == http.MethodHead:
		action = "HeadBucket"
	case key == "":
		action = ""
	}
	allowed, ok := plainParams[action]
	if !ok {
		allowed = plainParams[""]
	}
	for name := range query {
		if !slices.Contains(allowed, name) {
			action = ""
		}
	}
	for _, name := range unsupportedHeaders {
		if action == "PutObject" && c.Header.Get(name) != "" {
			action = ""
		}
	}
	if action == "" {
		return "", fail(http.StatusNotImplemented, "NotImplemented", "A header or parameter you provided implies functionality that is not implemented")
	}
	return action, nil
}

func splitPath(path string) (bucket, key string) {
	bucket, key, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return bucket, key
}

func bucketARN(bucket string) string { return "arn:aws:s3:::" + bucket }

func (s *Server) serveS3(w http.ResponseWriter, c *call) *apiError {
	setRequestID(w, c)
	bucket, key := splitPath(c.URL.Path)
	switch c.action {
	case "ListBuckets":
		return s.listBuckets(w, c)
	case "ListObjectsV2":
		return s.listObjects(w, c, bucket)
	case "HeadBucket":
		if e := s.authorize(c, "s3:ListBucket", bucketARN(bucket), nil); e != nil {
			return e
		}
		return s.requireBucket(bucket)
	}
	permission := "s3:" + c.action
	if c.action == "HeadObject" {
		permission = "s3:GetObject" // S3 API Reference, HeadObject, "Permissions"
	}
	if e := s.authorize(c, permission, bucketARN(bucket)+"/"+key, nil); e != nil {
		return e
	}
	if e := s.requireBucket(bucket); e != nil {
		return e
	}
	switch c.action {
	case "PutObject":
		return s.putObject(w, c, bucket, key)
	case "DeleteObject":
		s.mu.Lock()
		delete(s.buckets[bucket], key)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return s.getObject(w, c, bucket, key)
}

func (s *Server) requireBucket(bucket string) *apiError {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.buckets[bucket] == nil {
		return fail(http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist")
	}
	return nil
}

// getObject also serves HEAD. Who may not list the bucket does not learn what is not
// there: "If you don't have the s3:ListBucket permission, Amazon S3 returns … 403"
// (S3 API Reference, GetObject).
func (s *Server) getObject(w http.ResponseWriter, c *call, bucket, key string) *apiError {
	s.mu.RLock()
	o, ok := s.buckets[bucket][key]
	s.mu.RUnlock()
	if !ok {
		if e := s.authorize(c, "s3:ListBucket", bucketARN(bucket), nil); e != nil {
			return e
		}
		return fail(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	}
	for name, values := range o.meta {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", o.contentType)
	w.Header().Set("ETag", o.etag())
	http.ServeContent(w, c.Request, "", o.modified, bytes.NewReader(o.body))
	return nil
}

func (s *Server) putObject(w http.ResponseWriter, c *call, bucket, key string) *apiError {
	if len(key) > 1024 {
		return fail(http.StatusBadRequest, "KeyTooLongError", "Your key is too long")
	}
	o := object{body: c.body, contentType: c.Header.Get("Content-Type"), modified: c.now.UTC(), meta: http.Header{}}
	if o.contentType == "" {
		o.contentType = "application/octet-stream"
	}
	for name, values := range c.Header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			o.meta[name] = slices.Clone(values)
		}
	}
	s.mu.Lock()
	s.buckets[bucket][key] = o
	s.mu.Unlock()
	w.Header().Set("ETag", o.etag())
	w.WriteHeader(http.StatusOK)
	return nil
}

// listKeys returns the page of keys and common prefixes after `after`, in order, at
// most limit of both together, and what to go on after ("" if that was all).
func listKeys(sorted []string, prefix, delimiter, after string, limit int) (keys, prefixes []string, next string) {
	last := ""
	for _, key := range sorted {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		entry, common := key, false
		if delimiter != "" {
			if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
				entry, common = key[:len(prefix)+i+len(delimiter)], true
			}
		}
		if entry <= after || common && len(prefixes) > 0 && prefixes[len(prefixes)-1] == entry {
			continue
		}
		if len(keys)+len(prefixes) == limit {
			return keys, prefixes, last
		}
		if last = entry; common {
			prefixes = append(prefixes, entry)
		} else {
			keys = append(keys, entry)
		}
	}
	return keys, prefixes, ""
}

// pageSize reads max-keys; S3 gives 1,000 at most, however many are asked for.
func pageSize(query url.Values) (int, *apiError) {
	text := query.Get("max-keys")
	if text == "" {
		return 1000, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fail(http.StatusBadRequest, "InvalidArgument", "Provided max-keys not an integer or within integer range")
	}
	return min(n, 1000), nil
}
