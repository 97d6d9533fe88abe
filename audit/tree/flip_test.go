package tree_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/audit/tree"
)

// Each byte of an export is changed in several ways: an auditor finds it, or it is what an archived event is
// called and where it is to be looked for, of which its hash alone is proven. The export is one of a part of a log, with every kind of line: leaves, an archived event, a whole tile,
// hashes to both sides.
func TestEachByteOfAnExport(t *testing.T) {
	t.Parallel()
	l := newLog(t, 600)
	s, _ := newKey(t)
	h, lines := l.export(250, 520)
	signed := sign(t, s, 600, l.root(t, 600))
	h.Checkpoint = signed.Note
	for i := range lines {
		if lines[i].Index == 251 {
			lines[i].Body, lines[i].Away = nil, "2026-01"
		}
	}
	var file bytes.Buffer
	if _, err := tree.Write(&file, h, all(lines)); err != nil {
		t.Fatal(err)
	}
	text := file.Bytes()
	if why := judge(s.Keys(), text, signed); why != "" {
		t.Fatalf("as it is: %s", why)
	}
	name, month := strings.Index(string(text), "evt_251"), strings.Index(string(text), "2026-01\"")
	step := 97 // prime to the length of a line: over the lines each field is met
	if os.Getenv("TASKPASS_LONG") != "" {
		step = 7
	}
	for at := 0; at < len(text); at += step {
		if at >= name && at < name+len("evt_251") || at >= month && at < month+len("2026-01") {
			continue
		}
		for _, flip := range []byte{0x01, 0x20, 0x80} {
			changed := slices.Clone(text)
			changed[at] ^= flip
			if judge(s.Keys(), changed, signed) == "" {
				line := bytes.Count(text[:at], []byte("\n"))
				t.Fatalf("byte %d, in line %d, is %q in place of %q, and it verifies: %.300s", at, line+1, changed[at], text[at], bytes.Split(changed, []byte("\n"))[line])
			}
		}
	}
}

// judge says why an auditor who holds a checkpoint does not take an export.
func judge(keys *tree.Keys, text []byte, held tree.Checkpoint) string {
	h, lines, err := tree.Read(bytes.NewReader(text))
	if err != nil {
		return err.Error()
	}
	own, err := keys.Open([]byte(h.Checkpoint))
	if err != nil {
		return err.Error()
	}
	report, err := tree.Verify(h, lines, []tree.Checkpoint{own, held})
	if err != nil {
		return err.Error()
	}
	if f, bad := report.First(); bad {
		return f.String()
	}
	if !report.OK() || report.Header.From != 250 || report.Header.To != 520 {
		return "not all of it is proven"
	}
	return ""
}
