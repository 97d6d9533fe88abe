package aws

import (
	"net/http"
	"sync"
)

// Held is one call that waits at the door, made by Hold.
type Held struct {
	arrived, released, done chan struct{}
	release                 sync.Once
}

// Hold keeps the next call of an action ("PutRolePolicy") from its work until Release.
// The caller may go away meanwhile: what it sent is done all the same, like a request
// that the network delays and delivers long after its sender gave up. It takes its turn
// in the queue of faults; ClearFaults drops it unless the call is there.
func (s *Server) Hold(action string) *Held {
	h := &Held{arrived: make(chan struct{}), released: make(chan struct{}), done: make(chan struct{})}
	s.faults.Add(Fault{Action: action, Kind: hold, held: h}, 1)
	return h
}

// Arrived is closed once the call is there, signed properly, and waits.
func (h *Held) Arrived() <-chan struct{} { return h.arrived }

// Release lets the call go on and returns when its work is done. If the call is not
// there yet it returns at once, and the call will not wait.
func (h *Held) Release() {
	h.release.Do(func() { close(h.released) })
	select {
	case <-h.arrived:
		<-h.done
	default:
	}
}

// serveHeld does a held call's work at the time of its release; if the server closes
// first it is not done. Who calls was settled on arrival.
func (s *Server) serveHeld(w http.ResponseWriter, c *call, h *Held) {
	defer close(h.done)
	close(h.arrived)
	select {
	case <-h.released:
	case <-s.closed:
		panic(http.ErrAbortHandler)
	}
	c.now = s.cfg.Now()
	s.serve(w, c)
}
