package publish

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/taskpass/taskpass/audit/tree"
)

// S3 puts each note into a bucket as an object of its own, whose key sorts by size and time. The bucket should have
// object lock with a default retention: then not even its owner can take a checkpoint back. Nothing is overwritten.
type S3 struct {
	Client *s3.Client
	Bucket string
	Prefix string // empty, or ends in /
}

// OpenS3 takes s3://bucket/prefix. The SDK finds the credentials where it runs, and the region if it is empty. An
// endpoint is that of a server that is not AWS.
func OpenS3(ctx context.Context, at, region, endpoint string) (S3, error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return S3{}, errors.New("not a bucket, s3://BUCKET/PREFIX")
	}
	var options []func(*config.LoadOptions) error
	if region != "" {
		options = append(options, config.WithRegion(region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return S3{}, fmt.Errorf("finding the credentials for the bucket: %w", err)
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		if endpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = &endpoint, true
		}
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
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if api.ErrorCode() == "PreconditionFailed" { // an earlier try, whose answer was lost
			return nil
		}
		return fmt.Errorf("the bucket answered %s", api.ErrorCode())
	}
	return err
}

// Key is the name of a checkpoint's object.
func (s S3) Key(c tree.Checkpoint) string {
	return fmt.Sprintf("%s%020d-%s.txt", s.Prefix, c.Size, c.At.UTC().Format("20060102T150405.000000Z"))
}
