//go:build !linux

package broker

import (
	"os"
	"time"
)

// changed is unknown here: a file that was renamed into place counts like any other, once it has been left alone.
func changed(os.FileInfo) time.Time { return time.Time{} }
