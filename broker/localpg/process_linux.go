package localpg

import (
	"os"
	"strconv"
	"syscall"
)

// dieWithParent makes the kernel ask the server for a fast shutdown when we die,
// even by SIGKILL.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }

// worksIn reports whether the process's working directory is dir, as a server's is.
// One we may not look at belongs to another user, who could not serve dir.
func worksIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	return err == nil && cwd == dir
}
