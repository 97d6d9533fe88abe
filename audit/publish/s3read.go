package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/taskpass/taskpass/audit/tree"
)

const (
	keyTime = "20060102T150405.000000Z"
	suffix  = ".txt"
	first   = "0" // of the 20 digits of a size; what is named otherwise beside them is not even listed
)

// name sorts by size, and then by time.
func (s S3) name(size int64, at string) string {
	return fmt.Sprintf("%s%020d-%s%s", s.Prefix, size, at, suffix)
}

// entry is an object that has a checkpoint's name.
type entry struct {
	key  string
	size int64
	at   time.Time
}

// entry reads a name; false: it is not one that Key gives.
func (s S3) entry(key string) (e entry, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSuffix(key, suffix), s.Prefix)
	if !ok || len(rest) != 20+1+len(keyTime) {
		return e, false
	}
	size, err1 := strconv.ParseInt(rest[:20], 10, 64)
	at, err2 := time.Parse(keyTime, rest[21:])
	return entry{key, size, at}, err1 == nil && err2 == nil && s.name(size, at.Format(keyTime)) == key
}

// Newest implements sequence.Reader. It takes s3:ListBucket and s3:GetObject, and a few dozen calls however many checkpoints
// there are. If the newest does not open it is an error, and none before it will do: whoever may add to a bucket, but not
// delete from it, could else hide a checkpoint behind what he puts over it.
func (s S3) Newest(ctx context.Context, keys *tree.Keys) ([]tree.Checkpoint, error) {
	c, there, err := s.newest(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("s3://%s/%s: %w", s.Bucket, s.Prefix, err)
	}
	if !there {
		return nil, nil // nothing was published yet
	}
	return []tree.Checkpoint{c}, nil
}

func (s S3) newest(ctx context.Context, keys *tree.Keys) (c tree.Checkpoint, there bool, err error) {
	last, err := s.last(ctx)
	if err != nil || last.key == "" {
		return c, false, err
	}
	out, err := s.Client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.Bucket, Key: &last.key})
	if err != nil {
		return c, false, answered(err, "s3:GetObject")
	}
	defer out.Body.Close()
	text, err := io.ReadAll(io.LimitReader(out.Body, tree.MaxNote+1)) // what is longer does not open
	if err != nil {
		return c, false, err
	}
	if c, err = keys.Open(text); err != nil {
		return c, false, fmt.Errorf("%s is %w", last.key, err)
	}
	if s.Key(c) != last.key { // an old one under a greater number
		return c, false, fmt.Errorf("%s is a checkpoint of another name", last.key)
	}
	return c, true, nil
}

// last finds the last name; "" if there is none. S3 lists forwards only, so it halves twice: over the sizes that may still
// come, and then, for a log at which nothing happens, over the times of the one size.
func (s S3) last(ctx context.Context) (last entry, err error) {
	last, more, err := s.page(ctx, s.Prefix+first)
	if err != nil {
		return last, err
	}
	for _, half := range []struct {
		end   int64 // no number is as large
		of    func(entry) int64
		begin func(n int64) string // sorts before each name with that number, and after those with a smaller one
	}{
		{math.MaxInt64, func(e entry) int64 { return e.size }, func(n int64) string { return fmt.Sprintf("%s%020d", s.Prefix, n) }},
		{endOfTime.UnixMicro(), func(e entry) int64 { return e.at.UnixMicro() },
			func(n int64) string {
				return strings.TrimSuffix(s.name(last.size, time.UnixMicro(n).UTC().Format(keyTime)), suffix)
			}},
	} {
		for end := half.end; more && half.of(last) < end-1; {
			middle := half.of(last) + (end-half.of(last))/2
			further, again, err := s.page(ctx, half.begin(middle))
			switch {
			case err != nil:
				return last, err
			case further.key == "":
				end = middle
			default:
				last, more = further, again
			}
		}
	}
	return last, nil
}

var endOfTime = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC) // the last that a name has room for

// page gives the last name of the next page of objects that has any, and tells whether there are more.
func (s S3) page(ctx context.Context, after string) (last entry, more bool, err error) {
	for {
		out, err := s.Client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.Bucket, Prefix: aws.String(s.Prefix + first), StartAfter: &after})
		if err != nil {
			return last, false, answered(err, "s3:ListBucket")
		}
		for _, o := range out.Contents {
			after = aws.ToString(o.Key)
			if e, ok := s.entry(after); ok {
				last = e
			}
		}
		more = aws.ToBool(out.IsTruncated)
		if last.key != "" || !more {
			return last, more, nil
		}
		if len(out.Contents) == 0 {
			return last, false, errors.New("the bucket says that it has more, and does not show it")
		}
	}
}
