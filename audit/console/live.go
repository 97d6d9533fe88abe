package console

import (
	"bytes"
	"fmt"
	"net/http"
	"time"
)

// streamLife is below the server's write time-out; the page asks again.
const streamLife = 60 * time.Second

// follow sends a page's live part whenever it has changed, as server-sent events, until the client goes, the service
// stops, the session ends or its time is over. One stream is one read on the record.
func (c *console) follow(w http.ResponseWriter, r *http.Request, v view, b build) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // or a proxy keeps them back
	out := http.NewResponseController(w)
	tick := time.NewTicker(c.Every * time.Duration(v.Pace))
	defer tick.Stop()
	over := time.NewTimer(streamLife)
	defer over.Stop()
	var sent []byte
	for {
		part, err := c.drawn(v.Template+"-live", v)
		if err != nil {
			c.Logger.ErrorContext(r.Context(), "console: a live page cannot be drawn", "page", v.Template, "error", err)
			return
		}
		if sent == nil || !bytes.Equal(part, sent) {
			err = c.send(w, v, part)
			sent = part
		} else {
			_, err = fmt.Fprint(w, ":\n\n") // that the client is gone shows when something is written
		}
		if err != nil || out.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-c.Stopping.Done():
			return
		case <-over.C:
			return
		case <-tick.C:
		}
		if _, err := c.session(r.Context(), r); err != nil {
			_ = event(w, "gone", "", nil)
			return
		}
		if v.Next != nil {
			b = v.Next
		}
		if v, err = c.look(r, b); err != nil {
			if r.Context().Err() == nil {
				c.Logger.WarnContext(r.Context(), "console: a live page ended", "page", v.Template, "error", err)
			}
			return
		}
	}
}

// send sends a page's live part. What the browser is to remember is the event's id: it gives that back when it asks again
// (Last-Event-ID), and there is no other way to tell it anything in mid-stream.
func (c *console) send(w http.ResponseWriter, v view, part []byte) error {
	if v.Seen == nil {
		return event(w, "page", "", part)
	}
	id, err := c.seal(sealSeen, v.Seen)
	if err != nil {
		return err
	}
	return event(w, "page", id, part)
}

// event writes one server-sent event.
func event(w http.ResponseWriter, name, id string, data []byte) error {
	var buf bytes.Buffer
	fmt.Fprintf(&buf, "event: %s\n", name)
	if id != "" {
		fmt.Fprintf(&buf, "id: %s\n", id)
	}
	for line := range bytes.Lines(append(bytes.ReplaceAll(data, []byte("\r"), nil), '\n')) {
		buf.WriteString("data: ")
		buf.Write(line)
	}
	buf.WriteByte('\n')
	_, err := w.Write(buf.Bytes())
	return err
}
