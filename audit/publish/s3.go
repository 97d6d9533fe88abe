package publish

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/taskpass/taskpass/audit/tree"
)

// S3 puts each note into a bucket as an object of its own, whose key sorts by size and time. The bucket should have
// object lock with a default retention: then not even its owner can take a checkpoint back. Nothing is overwritten.
type S3 struct {
	Client *s3.Client
	Bucket string
	Prefix string // empty, or ends in /
}

// OpenS3 takes s3://bucket/prefix, and a configuration of the SDK. One with an endpoint is for a server that is not AWS.
func OpenS3(at string, cfg aws.Config) (S3, error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return S3{}, errors.New("not a bucket, s3://BUCKET/PREFIX")
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.DisableLogOutputChecksumValidationSkipped = true // it goes past our log, and a note bears its own signature
		o.UsePathStyle = cfg.BaseEndpoint != nil
		o.HTTPClient = s3wire{o.HTTPClient}
	})
	prefix := strings.Trim(u.Path, "/")
	if prefix != "" {
		prefix += "/"
	}
	return S3{Client: client, Bucket: u.Host, Prefix: prefix}, nil
}

// Put implements Destination.
func (s S3) Put(ctx context.Context, c tree.Checkpoint) error {
	_, err := s.Client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.Bucket, Key: aws.String(s.Key(c)), Body: strings.NewReader(c.Note),
		ContentType: aws.String("text/plain; charset=utf-8"), IfNoneMatch: aws.String("*"),
	})
	if code(err) == "PreconditionFailed" { // an earlier try, whose answer was lost
		return nil
	}
	return answered(err, "s3:PutObject")
}

// Key is the name of a checkpoint's object.
func (s S3) Key(c tree.Checkpoint) string { return s.name(c.Size, c.At.UTC().Format(keyTime)) }
