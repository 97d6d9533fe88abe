package openapi

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

const (
	exportChunk    = 64 << 10         // bytes that are sent at a time
	exportPatience = 30 * time.Second // for a client to take one chunk
	eventsTrailer  = "Taskpass-Events"
)

type format string

const (
	formatJSON   format = "application/json"
	formatNDJSON format = "application/x-ndjson"
	formatCSV    format = "text/csv"
)

type (
	formatKey struct{}
	headKey   struct{} // whether only the header is wanted
)

// negotiate notes which of the formats that one call has the client would rather have.
func negotiate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), formatKey{}, wanted(strings.Join(r.Header.Values("Accept"), ",")))
		ctx = context.WithValue(ctx, headKey{}, r.Method == http.MethodHead)
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func formatOf(ctx context.Context) format {
	f, _ := ctx.Value(formatKey{}).(format)
	return f
}

// wanted is the format of the greatest q, the first of several; JSON where it names none that there is.
func wanted(accept string) format {
	best, weight := formatJSON, 0.0
	for part := range strings.SplitSeq(accept, ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q := 1.0
		if text, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(text, 64); err != nil {
				continue
			}
		}
		f := format(media)
		if media == "*/*" || media == "application/*" {
			f = formatJSON
		}
		if (f == formatJSON || f == formatNDJSON || f == formatCSV) && q > weight && q <= 1 {
			best, weight = f, q
		}
	}
	return best
}

// export streams what matches. It is begun, and on the record, before the first byte is sent; what fails until then is
// answered as a problem.
func (s *server) export(ctx context.Context, caller broker.Caller, q audit.Query, f format) (ListAuditEventsResponseObject, error) {
	q.Limit = audit.MaxPage
	first, err := s.Audit.Find(ctx, q)
	if err == nil {
		asked := filters(q, len(first.Events) > 0)
		asked["export"] = string(f)
		err = s.Broker.AuditRead(ctx, caller, asked)
	}
	if err != nil {
		return nil, err
	}
	return &exportResponse{ctx: ctx, server: s, query: q, first: first, format: f}, nil
}

type exportResponse struct {
	ctx    context.Context
	server *server
	query  audit.Query
	first  audit.Page
	format format

	out   *bufio.Writer
	csv   *csv.Writer
	count int
}

// VisitListAuditEventsResponse implements ListAuditEventsResponseObject. A stream that cannot be finished is aborted, so
// that nobody takes a part for the whole.
func (e *exportResponse) VisitListAuditEventsResponse(w http.ResponseWriter) error {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	defer context.AfterFunc(e.server.Stopping, cancel)()
	h := w.Header()
	h.Set("Content-Type", string(e.format)+"; charset=utf-8")
	h.Set("Trailer", eventsTrailer)
	w.WriteHeader(http.StatusOK)
	if head, _ := e.ctx.Value(headKey{}).(bool); head {
		return nil
	}
	e.out = bufio.NewWriterSize(&patient{w, http.NewResponseController(w)}, exportChunk)
	err := e.begin()
	if err == nil {
		err = e.server.Audit.Rest(ctx, e.query, e.first, func(p audit.Page) error { return errors.Join(ctx.Err(), e.page(p)) })
	}
	if err == nil {
		err = e.end()
	}
	if err != nil {
		e.server.Logger.WarnContext(ctx, "export broken off", "events", e.count, "error", err, "request_id", callerOf(e.ctx).RequestID)
		panic(http.ErrAbortHandler)
	}
	h.Set(eventsTrailer, strconv.Itoa(e.count))
	return nil
}

func (e *exportResponse) begin() error {
	if e.format != formatCSV {
		return nil
	}
	e.csv = csv.NewWriter(e.out)
	e.csv.UseCRLF = true
	return e.csv.Write(audit.CSVColumns())
}

func (e *exportResponse) page(p audit.Page) error {
	for _, body := range p.Events {
		e.count++
		if e.csv == nil {
			_, err := e.out.Write(append(body, '\n'))
			if err != nil {
				return err
			}
			continue
		}
		row, err := audit.CSVRow(body)
		if err == nil {
			err = e.csv.Write(row)
		}
		if err != nil {
			return err
		}
	}
	if e.csv != nil {
		e.csv.Flush()
		if err := e.csv.Error(); err != nil {
			return err
		}
	}
	return e.out.Flush()
}

func (e *exportResponse) end() error {
	if e.csv == nil {
		line, err := json.Marshal(map[string]any{"end": true, "events": e.count})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(e.out, "%s\n", line); err != nil {
			return err
		}
	}
	return e.out.Flush()
}

// patient gives the client time for each chunk, in place of a time for the whole answer.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	if err := p.control.SetWriteDeadline(time.Now().Add(exportPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := p.ResponseWriter.Write(b)
	if err == nil {
		err = p.control.Flush()
	}
	return n, err
}
