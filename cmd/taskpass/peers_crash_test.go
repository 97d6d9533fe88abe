//go:build peers

package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// buildPeerBinary is taskpass with its kill points.
func buildPeerBinary(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "taskpass")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "killpoints", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building taskpass: %v\n%s", err, out)
	}
	return binary
}

// peerProcess is one `taskpass serve`.
type peerProcess struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// launch adds a replica with a process of its own, and returns when it is ready; killAt is a kill point or empty.
func (b *peerBroker) launch(t *testing.T, rgw *peerRGW, binary, killAt string) *peerProcess {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	b.nodes = append(b.nodes, "http://"+address)
	p := &peerProcess{exited: make(chan struct{})}
	p.cmd = exec.Command(binary, "serve", "--config", b.configure(t, "process-"+killAt, address, rgw.url))
	p.cmd.Env = append(os.Environ(), "TASKPASS_KILL_AT="+killAt)
	p.cmd.Stderr = &b.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
	})
	eventually(t, "a replica is ready", func() bool {
		select {
		case <-p.exited:
			t.Fatalf("the replica has ended: %s", p.cmd.ProcessState)
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	return p
}

// awaitKilled waits until the process has killed itself.
func (p *peerProcess) awaitKilled(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(2 * time.Minute):
		t.Fatal("it never reached its kill point")
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("it ended by itself: %s", p.cmd.ProcessState)
	}
}

// killedRevocation is an installation whose replica was killed when a revocation was durable and RGW not told of it.
type killedRevocation struct {
	*peerBroker
	rgw           *peerRGW
	ended, spared *client.IssuedCredential
}

func (p peers) killRevocation(t *testing.T, b *peerBroker, binary string) killedRevocation {
	t.Helper()
	victim := b.launch(t, p.peerRGW, binary, "after_revoke_asked")
	node := len(b.nodes) - 1
	k := killedRevocation{peerBroker: b, rgw: p.peerRGW}
	for _, c := range []**client.IssuedCredential{&k.ended, &k.spared} {
		*c = b.issueBy(t, node, client.IssueRequest{TaskID: peerA, Scopes: []string{"read:content"}})
		k.reads(t, *c, "before", true)
	}
	if ended, err := b.revoke(t, node, k.ended.ID); err == nil {
		t.Fatalf("it was to be killed, but answered %+v", ended)
	}
	victim.awaitKilled(t)
	b.nodes = b.nodes[:node]
	return k
}

func (k killedRevocation) reads(t *testing.T, c *client.IssuedCredential, when string, allow bool) {
	t.Helper()
	_, err := k.rgw.agent(c.Secret).get(t, peerKey(peerA))
	if allow {
		allowed(t, "reading "+when, err)
	} else {
		refused(t, "reading "+when, err)
	}
}

// endsInDenial waits for the other replica to do what the dead one had promised, when its lease is over.
func (k killedRevocation) endsInDenial(t *testing.T) {
	t.Helper()
	begun := time.Now()
	if state := k.credential(t, k.ended.ID).Status; state != client.Revoking && state != client.Revoked {
		t.Errorf("the revocation is not on the ledger: the credential is %s", state)
	}
	eventually(t, "RGW refuses it", func() bool {
		_, err := k.rgw.agent(k.ended.Secret).get(t, peerKey(peerA))
		return err != nil
	})
	t.Logf("RGW refuses it after %s", time.Since(begun).Round(100*time.Millisecond))
	eventually(t, "it is listed as revoked", func() bool { return k.credential(t, k.ended.ID).Status == client.Revoked })
	if state := k.credential(t, k.ended.ID); state.Revocation.Result != client.Denied {
		t.Errorf("got %+v", state.Revocation)
	}
	k.reads(t, k.ended, "afterwards", false)
	k.reads(t, k.spared, "with its sibling afterwards", true)
	events, _ := k.events(t, client.ListAuditEventsParams{UpstreamID: new(k.ended.Secret.Env["AWS_ACCESS_KEY_ID"])})
	var types []string
	for _, e := range events {
		types = append(types, e.Type)
	}
	want := []string{string(broker.EventIssued), string(broker.EventRevokeAsked), string(broker.EventRevoked)}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Error(diff)
	}
	if n := k.secrets.in(k.log.String()); n > 0 {
		t.Errorf("the log holds %d secrets", n)
	}
}

func (p peers) killedAlone(t *testing.T, binary string) {
	t.Parallel()
	k := p.killRevocation(t, installPeerBroker(t, p.peerRGW, "killed-alone"), binary)
	k.reads(t, k.ended, "while no broker runs", true)
	k.launch(t, p.peerRGW, binary, "")
	k.endsInDenial(t)
}

func (p peers) killedBesideAnother(t *testing.T, binary string) {
	t.Parallel()
	b := installPeerBroker(t, p.peerRGW, "killed-beside")
	b.launch(t, p.peerRGW, binary, "")
	p.killRevocation(t, b, binary).endsInDenial(t)
}
