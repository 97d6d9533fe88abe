package broker

import (
	"os"
	"syscall"
	"time"
)

// changed is when the file's inode changed last. A rename does that, as do chmod and chown; a write sets both times
// alike.
func changed(info os.FileInfo) time.Time {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(s.Ctim.Unix())
	}
	return time.Time{}
}
