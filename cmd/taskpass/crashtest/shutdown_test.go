package crashtest

import (
	"fmt"
	"syscall"
	"testing"

	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// Told to stop, a replica answers what it began, and begins nothing.
func TestStopsGracefully(t *testing.T) {
	t.Parallel()
	const underWay = 6
	r := newRig(t)
	p := r.start("")
	reply := make(chan struct{})
	r.aws.Inject(sandbox.Fault{Action: "AssumeRole", Kind: sandbox.SlowReply, Until: reply, Times: underWay})
	var answers []<-chan answer
	for i := range underWay {
		answers = append(answers, aside(func() answer { return p.issue(awsRequest(fmt.Sprint("task-", i)), "") }))
	}
	r.eventually("the upstream was asked for all", func() bool { return len(r.aws.Sessions()) == underWay })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.eventually("it takes no more calls", func() bool {
		return p.issue(awsRequest("late"), "").err != nil || p.dead()
	})
	close(reply)
	for _, a := range answers {
		if a := <-a; !a.ok() {
			t.Errorf("a call that was under way is answered %s", a)
		}
	}
	<-p.exited
	if p.err != nil {
		t.Errorf("it ended with %v", p.err)
	}
	if n := r.count("SELECT count(*) FROM versions WHERE state <> 'active'"); n != 0 {
		t.Errorf("%d versions are left unfinished", n)
	}
	r.aftermath(r.start(""))
}

// Told to stop under load, it leaves nothing half done.
func TestStopsGracefullyUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	r.load(4, 8, p)
	done := aside(func() answer { r.load(4, 400, p); return answer{} })
	before := r.count("SELECT count(*) FROM versions")
	r.eventually("the load is on", func() bool { return r.count("SELECT count(*) FROM versions") > before+10 })
	p.stop()
	<-done
	// What was asked to end while it was being minted is lost, and the sweeper's; but no mint is left without its outcome.
	if n := r.count("SELECT count(*) FROM versions WHERE state = 'issuing' AND NOT unclaimed"); n != 0 {
		t.Errorf("%d mints are left without an outcome", n)
	}
	r.aftermath(r.start(""))
}
