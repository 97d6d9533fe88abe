package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrInUse means that a live process has the directory.
var ErrInUse = errors.New("the directory is in use by another process")

// dyingLimit is how long Start waits for the server of a dead owner to end.
const dyingLimit = 15 * time.Second

// account is whom the server runs as when we are root; nil means ourselves.
type account struct {
	name     string
	uid, gid uint32
}

// serverAccount picks the owner of an existing cluster, else "postgres", else "nobody".
func serverAccount(dir string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil is the answer: ourselves
	}
	if info, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return &account{name: "uid " + strconv.Itoa(int(st.Uid)), uid: st.Uid, gid: st.Gid}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(u.Uid, 10, 32)
		gid, errG := strconv.ParseUint(u.Gid, 10, 32)
		if errU == nil && errG == nil && uid != 0 {
			return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("localpg: PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// prepareDir makes dir ours and returns its real, absolute path.
func prepareDir(dir string, a *account) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("localpg: %w", err) }
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fail(err)
	}
	parentMode := os.FileMode(0o700)
	if a != nil {
		parentMode = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(dir), parentMode); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fail(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return fail(err)
	}
	if err := reachable(filepath.Dir(dir), a); err != nil {
		return fail(err)
	}
	// A slip such as Dir: "/tmp" must not take a directory away from its users.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fail(err)
	}
	ours := func(e os.DirEntry) bool { return e.Name() == "lock" }
	if len(entries) > 0 && !slices.ContainsFunc(entries, ours) {
		return fail(fmt.Errorf("%s holds other files: choose an empty directory or a new one", dir))
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs x
		return fail(err)
	}
	if err := giveTo(a, dir); err != nil {
		return fail(err)
	}
	return dir, nil
}

// giveTo makes the server's user the owner of dir.
func giveTo(a *account, dir string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(dir, int(a.uid), int(a.gid))
}

// reachable reports the first directory from dir upwards that a may not pass.
func reachable(dir string, a *account) error {
	if a == nil {
		return nil
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		need := os.FileMode(0o001)
		switch {
		case st.Uid == a.uid:
			need = 0o100
		case st.Gid == a.gid:
			need = 0o010
		}
		if info.Mode().Perm()&need == 0 {
			return fmt.Errorf("for root, PostgreSQL runs as user %s, who may not enter %s: "+
				"choose a directory elsewhere, such as /var/lib/taskpass", a.name, dir)
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil
		}
		dir = up
	}
}

// takeLock locks dir for this process. The file holds the owner's process id, and
// the server inherits the lock: held by a living owner it is ErrInUse; held without
// one it is a server on its way out, worth waiting for.
func takeLock(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, dyingLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for asked := false; ; {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		owner := readPID(path)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			lock.Close()
			return nil, fmt.Errorf("localpg: lock %s: %w", path, err)
		}
		if owner != 0 && alive(owner) {
			lock.Close()
			return nil, fmt.Errorf("localpg: %w: process %d has %s", ErrInUse, owner, dir)
		}
		if !asked && owner != 0 {
			asked = true
			stopOrphan(filepath.Join(dir, "data"))
		}
		select {
		case <-ctx.Done():
			lock.Close()
			return nil, fmt.Errorf("localpg: %w: the server of a former owner still runs in %s", ErrInUse, dir)
		case <-tick.C:
		}
	}
	if err = lock.Truncate(0); err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("localpg: lock %s: %w", path, err)
	}
	return lock, nil
}

// release gives up the lock and what lies outside Dir. A server process that
// lingers still holds the lock; without an owner's id in it, the next Start waits.
func (s *Server) release() {
	if s.tempDir != "" {
		os.RemoveAll(s.tempDir)
	}
	_ = s.lock.Truncate(0)
	s.lock.Close()
}

// makeSocketDir makes an empty one: a socket's lock file, too, can name a process
// id that has since been given to somebody else.
func (s *Server) makeSocketDir() error {
	s.socketDir = filepath.Join(s.dir, "run")
	var err error
	if len(s.socketDir) > maxSocketDir {
		if s.tempDir, err = os.MkdirTemp("", "taskpass-pg-"); err == nil && len(s.tempDir) > maxSocketDir {
			os.Remove(s.tempDir)
			s.tempDir, err = os.MkdirTemp("/tmp", "taskpass-pg-")
		}
		s.socketDir = s.tempDir
	} else if err = os.RemoveAll(s.socketDir); err == nil {
		err = os.Mkdir(s.socketDir, 0o700)
	}
	if err == nil {
		err = giveTo(s.account, s.socketDir)
	}
	if err != nil {
		return fmt.Errorf("localpg: socket directory: %w", err)
	}
	return nil
}

// stopOrphan asks a server to stop whose owner died, where nothing else does (macOS).
// The lock is held, so the process that postmaster.pid names is no stranger.
func stopOrphan(data string) {
	if pid := readPID(filepath.Join(data, "postmaster.pid")); pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGINT) // it may just have ended
	}
}

// dropStalePID removes a postmaster.pid that names a living stranger: in a restarted
// container ids come round quickly, and PostgreSQL would refuse to start. A dead id
// it recognises itself.
func dropStalePID(data string) {
	path := filepath.Join(data, "postmaster.pid")
	if pid := readPID(path); pid > 0 && alive(pid) && !worksIn(pid, data) {
		os.Remove(path)
	}
}

// readPID reads the number on a file's first line; 0 if there is none.
func readPID(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
