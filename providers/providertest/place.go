package providertest

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// SecretFile keeps a secret in a file, as operators do.
func SecretFile(t testing.TB, value string) broker.Ref {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	WriteSecret(t, path, value+"\n")
	return broker.Ref("file:" + path)
}

// WriteSecret puts a text into a file as an operator's tool does: it is whole, written a while ago, and renamed into
// place.
func WriteSecret(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path+".new", time.Time{}, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Refusing is an address that is bound and not listened on: whoever connects is refused, and nobody else can take it.
func Refusing(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + strconv.Itoa(at.(*syscall.SockaddrInet4).Port)
}
