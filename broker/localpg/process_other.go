//go:build unix && !linux

package localpg

import "syscall"

// dieWithParent: there is no such signal here; takeLock stops what was left.
func dieWithParent(*syscall.SysProcAttr) {}

// worksIn cannot know here, and leaves the judgement to PostgreSQL.
func worksIn(int, string) bool { return true }
