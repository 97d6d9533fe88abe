package seal_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/seal"
)

const plain = `{"fields":{"key":"s3cr3t-CANARY"}}`

func newKeyset(t *testing.T) broker.Secret {
	t.Helper()
	keyset, err := seal.NewKeyset()
	if err != nil {
		t.Fatal(err)
	}
	return keyset
}

func newSealer(t *testing.T, keyset broker.Secret) *seal.Sealer {
	t.Helper()
	s, err := seal.New(keyset)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	keyset := newKeyset(t)
	s, id := newSealer(t, keyset), broker.NewVersionID()
	a, err := s.Seal([]byte(plain), id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Seal([]byte(plain), id)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, b) || bytes.Contains(a, []byte("CANARY")) {
		t.Error("sealing shows what is sealed")
	}
	// Another process, with the same keyset in a file with a newline at its end.
	got, err := newSealer(t, broker.NewSecret(keyset.Reveal()+"\n")).Open(a, id)
	if err != nil || string(got) != plain {
		t.Errorf("opened %q, %v", got, err)
	}
}

// What is sealed opens only under its own row, only whole, and only with its keyset.
func TestSealedIsBound(t *testing.T) {
	t.Parallel()
	s, id := newSealer(t, newKeyset(t)), broker.NewVersionID()
	sealed, err := s.Seal([]byte(plain), id)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, s *seal.Sealer, sealed []byte, id broker.VersionID) {
		t.Helper()
		if got, err := s.Open(sealed, id); err == nil || len(got) > 0 || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: opened %q, %v", what, got, err)
		}
	}
	refuse("another row", s, sealed, broker.NewVersionID())
	refuse("no row", s, sealed, "")
	refuse("a row of a longer name", s, sealed, id+"a")
	refuse("another keyset", newSealer(t, newKeyset(t)), sealed, id)
	refuse("nothing", s, nil, id)
	refuse("only the prefix", s, sealed[:5], id)
	refuse("cut", s, sealed[:len(sealed)-1], id)
	refuse("longer", s, append(bytes.Clone(sealed), 0), id)
	for i := range sealed {
		for _, bit := range []byte{0x01, 0x80} {
			other := bytes.Clone(sealed)
			other[i] ^= bit
			refuse("tampered", s, other, id)
		}
	}
}

// A key added as primary seals from then on, and what the old one sealed still opens.
func TestKeysetRotates(t *testing.T) {
	t.Parallel()
	old := newKeyset(t)
	id := broker.NewVersionID()
	sealed, err := newSealer(t, old).Seal([]byte(plain), id)
	if err != nil {
		t.Fatal(err)
	}
	type set struct {
		PrimaryKeyID uint32            `json:"primaryKeyId"`
		Key          []json.RawMessage `json:"key"`
	}
	var a, b set
	for text, into := range map[string]*set{old.Reveal(): &a, newKeyset(t).Reveal(): &b} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	b.Key = append(b.Key, a.Key...)
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	both := newSealer(t, broker.NewSecret(string(text)))
	if got, err := both.Open(sealed, id); err != nil || string(got) != plain {
		t.Errorf("opened %q, %v", got, err)
	}
	anew, err := both.Seal([]byte(plain), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSealer(t, old).Open(anew, id); err == nil {
		t.Error("the old key still seals")
	}
}

// What is no keyset is refused without a word of it: it may be a keyset with a slip.
func TestBadKeysets(t *testing.T) {
	t.Parallel()
	good := newKeyset(t).Reveal()
	handle, err := keyset.NewHandle(mac.HMACSHA256Tag256KeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	var forMAC bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&forMAC)); err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"empty": "", "no JSON": "s3cr3t-CANARY", "cut": good[:len(good)/2], "an empty object": "{}", "a list": "[]",
		"another primitive": forMAC.String(), "no primary": strings.Replace(good, "primaryKeyId", "primary", 1),
	} {
		_, err := seal.New(broker.NewSecret(text))
		if err == nil {
			t.Errorf("%s is taken", what)
		} else if strings.Contains(err.Error(), "CANARY") || len(text) > 20 && strings.Contains(err.Error(), text[10:20]) {
			t.Errorf("%s: the error quotes it: %v", what, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	keyset, err := seal.NewKeyset()
	if err != nil {
		f.Fatal(err)
	}
	s, err := seal.New(keyset)
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := s.Seal([]byte(plain), "abcdefghijklmnop")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed[1:], "abcdefghijklmnop")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, text []byte, id string) {
		if got, err := s.Open(text, broker.VersionID(id)); err == nil && !bytes.Equal(text, sealed) {
			t.Errorf("a forgery opens: %q", got)
		}
	})
}
