package upstreamlog

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"

	"golang.org/x/text/encoding/unicode"
)

var (
	errCutOff   = errors.New("the gzip data is cut off: the file ends before its end")
	errDamaged  = errors.New("the gzip data is damaged")
	errTrailing = errors.New("the gzip data is followed by something else")
)

// maxZips is how many times a file may be compressed: an object that is stored compressed, and uploaded compressed again.
const maxZips = 3

// plain returns the text of a file in UTF-8, without decompressing or converting more than is read. Files may be gzip, of
// one or more members with NUL bytes between and after them, and UTF-16, which PowerShell's > writes, with or without a
// byte order mark.
func plain(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	for range maxZips {
		if head, _ := b.Peek(2); !isGzip(head) {
			break
		}
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, gzipError(err)
		}
		z.Multistream(false)
		b = bufio.NewReaderSize(&members{file: b, zip: z}, 64<<10)
	}
	head, _ := b.Peek(4)
	if order, ok := utf16Order(head); ok {
		return unicode.UTF16(order, unicode.UseBOM).NewDecoder().Reader(b), nil
	}
	return b, nil
}

func isGzip(head []byte) bool { return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) }

// utf16Order recognizes UTF-16 by its byte order mark, or by the NUL bytes of two ASCII characters.
func utf16Order(head []byte) (order unicode.Endianness, ok bool) {
	switch {
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}):
		return unicode.LittleEndian, true
	case bytes.HasPrefix(head, []byte{0xfe, 0xff}):
		return unicode.BigEndian, true
	case len(head) < 4:
		return order, false
	case head[0] != 0 && head[1] == 0 && head[2] != 0 && head[3] == 0:
		return unicode.LittleEndian, true
	case head[0] == 0 && head[1] != 0 && head[2] == 0 && head[3] != 0:
		return unicode.BigEndian, true
	}
	return order, false
}

// members reads the members of a gzip file one after the other. The standard library's own reading of several fails at the
// NUL bytes that tapes and block-wise copies add.
type members struct {
	file *bufio.Reader
	zip  *gzip.Reader
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.zip.Read(p)
		if n > 0 && (err == nil || errors.Is(err, io.EOF)) {
			return n, nil // the end is reported by the next call
		}
		if !errors.Is(err, io.EOF) {
			return n, gzipError(err)
		}
		if err := m.next(); err != nil {
			return 0, err
		}
	}
}

// next moves to the next member; io.EOF: there is none.
func (m *members) next() error {
	for {
		switch c, err := m.file.ReadByte(); {
		case err != nil:
			return err
		case c != 0:
			_ = m.file.UnreadByte()
			if head, _ := m.file.Peek(2); !isGzip(head) {
				return errTrailing
			}
			if err := m.zip.Reset(m.file); err != nil {
				return gzipError(err)
			}
			m.zip.Multistream(false)
			return nil
		}
	}
}

func gzipError(err error) error {
	var corrupt flate.CorruptInputError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errCutOff
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.As(err, &corrupt):
		return errDamaged
	}
	return err // nil, or the disk's
}
