package aws

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // an upload checksum that S3 offers, not a signature
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Values of x-amz-content-sha256 that are not a hash (Amazon S3 API Reference,
// "Signature Calculations for the Authorization Header").
const (
	unsignedPayload  = "UNSIGNED-PAYLOAD"
	unsignedTrailers = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// payloadHash returns what the signature covers in place of the body, and has
// checked the body against it where it is a hash.
func (c *call) payloadHash() (string, *apiError) {
	if c.service != "s3" {
		return sha256Hex(c.raw), nil
	}
	claimed := c.Header.Get("X-Amz-Content-Sha256")
	switch {
	case claimed == "":
		return "", fail(http.StatusBadRequest, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
	case claimed == unsignedPayload, claimed == unsignedTrailers:
		return claimed, nil
	case strings.HasPrefix(claimed, "STREAMING-"):
		return "", fail(http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented")
	case !hmac.Equal([]byte(claimed), []byte(sha256Hex(c.raw))):
		return "", fail(http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	return claimed, nil
}

// decodePayload takes the body out of the aws-chunked framing, and checks the upload
// checksum that a header or a trailer names.
func (c *call) decodePayload() *apiError {
	trailers := textproto.MIMEHeader{}
	if c.Header.Get("X-Amz-Content-Sha256") == unsignedTrailers {
		body, err := unchunk(c.raw, trailers)
		if err != nil || c.Header.Get("X-Amz-Decoded-Content-Length") != strconv.Itoa(len(body)) {
			return fail(http.StatusBadRequest, "IncompleteBody", "The request body terminated unexpectedly")
		}
		if want := c.Header.Get("X-Amz-Trailer"); want != "" && trailers.Get(want) == "" {
			return fail(http.StatusBadRequest, "MalformedTrailerError", "The request contained trailing data that was not well-formed")
		}
		c.body = body
	}
	for name, newHash := range checksums {
		for _, sent := range []string{c.Header.Get(name), trailers.Get(name)} {
			if sent == "" {
				continue
			}
			h := newHash()
			h.Write(c.body)
			if base64.StdEncoding.EncodeToString(h.Sum(nil)) != sent {
				return fail(http.StatusBadRequest, "BadDigest", "The "+strings.ToUpper(name[len("X-Amz-Checksum-"):])+" you specified did not match the calculated checksum.")
			}
		}
	}
	return nil
}

// checksums are those that are verified; S3 has more (CRC64NVME), which pass unread.
var checksums = map[string]func() hash.Hash{
	"X-Amz-Checksum-Crc32":  func() hash.Hash { return crc32.NewIEEE() },
	"X-Amz-Checksum-Crc32c": func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	"X-Amz-Checksum-Sha1":   sha1.New,
	"X-Amz-Checksum-Sha256": sha256.New,
}

// unchunk reads "size\r\n…data…\r\n" chunks up to an empty one, then trailer lines.
func unchunk(raw []byte, trailers textproto.MIMEHeader) ([]byte, error) {
	in := bufio.NewReader(bytes.NewReader(raw))
	var body []byte
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		size, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ";")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil || n < 0 || n > int64(len(raw)) {
			return nil, io.ErrUnexpectedEOF
		}
		if n == 0 {
			break
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(in, chunk); err != nil || string(chunk[n:]) != "\r\n" {
			return nil, io.ErrUnexpectedEOF
		}
		body = append(body, chunk[:n]...)
	}
	for {
		line, err := in.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if name, value, ok := strings.Cut(line, ":"); ok {
			trailers.Set(name, strings.TrimSpace(value))
		}
		if line == "" || err != nil {
			return body, nil //nolint:nilerr // a body may end without the empty line
		}
	}
}
