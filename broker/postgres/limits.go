package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// limits ends every wait for the database. PostgreSQL's own time-outs do not help when it hangs or when the network
// swallows its answer. pgx asks a tracer for the context of each call, so one place reaches all of them.
type limits struct {
	statement time.Duration // for a statement, a batch, a preparation or a COPY
	patient   time.Duration // the same, where Patient was said
	connect   time.Duration // for a connection with all its hosts, names and set-up
}

type (
	cancelKey  struct{}
	patientKey struct{}
)

// Patient is for work in the background that no request waits for: its statements may take as long as PostgreSQL lets
// them, and a little more.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, patientKey{}, true) }

func (l *limits) within(ctx context.Context) context.Context {
	if ctx.Value(patientKey{}) != nil {
		return within(ctx, l.patient)
	}
	return within(ctx, l.statement)
}

func within(ctx context.Context, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, limit)
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// end frees the timer of the context that within made: the innermost one's.
func end(ctx context.Context) {
	if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

func (l *limits) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return l.within(ctx)
}
func (l *limits) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { end(ctx) }

func (l *limits) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return l.within(ctx)
}
func (l *limits) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData)     {}
func (l *limits) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) { end(ctx) }

func (l *limits) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return l.within(ctx)
}
func (l *limits) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromEndData) {
	end(ctx)
}

func (l *limits) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return l.within(ctx)
}
func (l *limits) TracePrepareEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareEndData) {
	end(ctx)
}

func (l *limits) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return within(ctx, l.connect)
}
func (l *limits) TraceConnectEnd(ctx context.Context, _ pgx.TraceConnectEndData) { end(ctx) }

func (l *limits) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return within(ctx, acquireLimit)
}
func (l *limits) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	end(ctx)
}

// onError decides by SQLSTATE which connections are of no more use. reset is called when the pool's others are most
// likely no better.
func onError(reset func()) pgconn.PgErrorHandler {
	return func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
		if lost(err.Code) {
			if reset != nil {
				reset()
			}
			return false
		}
		return err.SeverityUnlocalized != "FATAL" && err.Severity != "FATAL"
	}
}

// lost are the SQLSTATEs after which a session cannot work on: it may not write (a failover, a guard against full
// disks), the server ends it or is starting (57P01 to 57P05), or a proxy has lost the server (class 08).
func lost(code string) bool {
	return code == "25006" || strings.HasPrefix(code, "57P0") || strings.HasPrefix(code, "08")
}
