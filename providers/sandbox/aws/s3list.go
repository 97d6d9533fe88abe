package aws

import (
	"encoding/base64"
	"encoding/xml"
	"maps"
	"net/http"
	"slices"
)

func (s *Server) listBuckets(w http.ResponseWriter, c *call) *apiError {
	// The action has no resource of its own; policies name it "*" or arn:aws:s3:::*.
	if e := s.authorize(c, "s3:ListAllMyBuckets", bucketARN("*"), nil); e != nil {
		return e
	}
	type bucket struct{ Name, CreationDate string }
	type result struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListAllMyBucketsResult"`
		Buckets struct{ Bucket []bucket }
	}
	var out result
	s.mu.RLock()
	names := slices.Sorted(maps.Keys(s.buckets))
	s.mu.RUnlock()
	for _, name := range names {
		out.Buckets.Bucket = append(out.Buckets.Bucket, bucket{name, "2026-01-01T00:00:00.000Z"})
	}
	writeXML(w, http.StatusOK, out)
	return nil
}

type listResult struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name                  string
	Prefix                string
	Delimiter             string `xml:",omitempty"`
	MaxKeys               int
	KeyCount              int
	IsTruncated           bool
	EncodingType          string `xml:",omitempty"`
	StartAfter            string `xml:",omitempty"`
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	Contents              []listEntry
	CommonPrefixes        []struct{ Prefix string }
}

type listEntry struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

// listObjects is ListObjectsV2. s3:prefix is a condition key of the request only if
// the request has the parameter.
func (s *Server) listObjects(w http.ResponseWriter, c *call, bucket string) *apiError {
	query := c.URL.Query()
	keys := map[string]string{}
	for _, name := range []string{"prefix", "delimiter", "max-keys"} {
		if query.Has(name) {
			keys["s3:"+name] = query.Get(name)
		}
	}
	if e := s.authorize(c, "s3:ListBucket", bucketARN(bucket), keys); e != nil {
		return e
	}
	if e := s.requireBucket(bucket); e != nil {
		return e
	}
	limit, e := pageSize(query)
	if e != nil {
		return e
	}
	after := query.Get("start-after")
	if token := query.Get("continuation-token"); token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return fail(http.StatusBadRequest, "InvalidArgument", "The continuation token provided is incorrect")
		}
		after = string(raw)
	}
	encode := func(s string) string { return s }
	if query.Get("encoding-type") == "url" {
		encode = func(s string) string { return uriEncode(s, true) }
	}
	out := listResult{
		Name: bucket, Prefix: encode(query.Get("prefix")), Delimiter: encode(query.Get("delimiter")), MaxKeys: limit,
		EncodingType: query.Get("encoding-type"), StartAfter: encode(query.Get("start-after")),
		ContinuationToken: query.Get("continuation-token"),
	}
	s.mu.RLock()
	objects := s.buckets[bucket]
	found, prefixes, next := listKeys(slices.Sorted(maps.Keys(objects)), query.Get("prefix"), query.Get("delimiter"), after, limit)
	for _, key := range found {
		o := objects[key]
		out.Contents = append(out.Contents, listEntry{
			Key: encode(key), LastModified: xmlTime(o.modified), ETag: o.etag(), Size: len(o.body), StorageClass: "STANDARD",
		})
	}
	s.mu.RUnlock()
	for _, p := range prefixes {
		out.CommonPrefixes = append(out.CommonPrefixes, struct{ Prefix string }{encode(p)})
	}
	out.KeyCount = len(found) + len(prefixes)
	if next != "" {
		out.IsTruncated, out.NextContinuationToken = true, base64.RawURLEncoding.EncodeToString([]byte(next))
	}
	writeXML(w, http.StatusOK, out)
	return nil
}
