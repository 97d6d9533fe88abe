package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// Fault is a reason that is safe to show to anybody: it holds nothing of a URL, of a server's answer or of a driver's.
type Fault string

func (f Fault) Error() string { return string(f) }

// refusals are what a server says to a login, by SQLSTATE. Its own words may repeat user, database and address.
var refusals = map[string]string{
	"28P01": "the server refused the login: the password is wrong, or the user does not exist",
	"28000": "the server refused the login: pg_hba.conf allows this user, database, address or unencrypted connection not",
	"3D000": "the database does not exist",
	"42501": "the login may not connect to this database, or may not work as the role or with the settings that are needed",
	"53300": "the server has no connection free",
	"57P01": "the server ended the connection: it is shutting down or restarting",
	"57P02": "the server ended the connection: it crashed and recovers",
	"57P03": "the server does not take connections: it is starting up or shutting down",
	"0A000": "the server does not support what the connection asks for",
}

// Reason is what to tell about an error of this package or of a statement, without a word that is not ours.
func Reason(err error) string {
	f, ours := errors.AsType[Fault](err)
	if connect, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		if list := causes(connect.Unwrap()); !ours || len(list) > 1 {
			return "PostgreSQL cannot be reached: " + strings.Join(list, "; ")
		}
	}
	if ours {
		return string(f)
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("PostgreSQL refused a statement (SQLSTATE %s)", pg.Code)
	}
	return "PostgreSQL did not answer: " + strings.Join(causes(err), "; ")
}

// causes tells each of the errors that a connection to one or several hosts ended with once.
func causes(err error) (list []string) {
	for _, e := range leaves(err) {
		if c := cause(e); !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	return list
}

// leaves are the errors of each attempt to connect, or the error itself.
func leaves(err error) (list []error) {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if many, ok := e.(interface{ Unwrap() []error }); ok { // this one, not one that it wraps
			for _, inner := range many.Unwrap() {
				list = append(list, leaves(inner)...)
			}
			return list
		}
	}
	return []error{err}
}

func cause(err error) string {
	if f, ok := errors.AsType[Fault](err); ok {
		return string(f)
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		text, known := refusals[pg.Code]
		if !known {
			text = "the server or a proxy refused the connection"
		}
		return fmt.Sprintf("%s (SQLSTATE %s)", text, pg.Code)
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "a host name cannot be resolved"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "TLS: " + certificate(err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "TLS: what answers does not speak it"
	}
	if alerted(err) {
		return "TLS: the handshake was refused: the server may want a client certificate (sslcert, sslkey) or another version"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "the attempt was cancelled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer within the time limit"
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return "no server among the hosts can be written to"
	}
	return "the connection failed or was cut"
}

func certificate(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the server's certificate is not signed by an authority that is trusted (sslrootcert)"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the server's certificate is for another name than the URL's host"
	}
	return "the server's certificate is not valid"
}

// Safe gives an error whose text is safe to show: of what went wrong with a connection or with the parsing of a URL it
// has the Reason instead of the driver's words, which repeat parts of the URL. Everything that a command prints and logs
// goes through here. The chain for errors.Is and errors.As is kept.
func Safe(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	walk(err, func(e error) {
		switch e := e.(type) { //nolint:errorlint // walk visits each
		case *pgconn.ConnectError:
			text = strings.ReplaceAll(text, e.Error(), Reason(e))
		case *pgconn.ParseConfigError:
			text = strings.ReplaceAll(text, e.Error(), "the database URL is not valid")
		}
	})
	if text == err.Error() {
		return err
	}
	return &safe{text, err}
}

// addressed is a URL of a database with a login in it, also as a path that was made of it.
var addressed = regexp.MustCompile(`(?i)(postgres(?:ql)?:/+)\S*@`)

// Masked hides the login in URLs that stand in a text, as where one was given in place of something else.
func Masked(text string) string { return addressed.ReplaceAllString(text, "$1…@") }

type safe struct {
	text string
	err  error
}

func (s *safe) Error() string { return s.text }
func (s *safe) Unwrap() error { return s.err }

func walk(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch e := err.(type) { //nolint:errorlint // each level is looked at
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			walk(inner, visit)
		}
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	}
}

// Starting tells whether a connection or a check failed in a way that time mends: the server or its name is not there yet,
// it ends or begins its sessions, or it takes no writes yet. Of several hosts one such is enough.
func Starting(err error) bool {
	if _, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		return false
	}
	return slices.ContainsFunc(leaves(err), startingLeaf)
}

func startingLeaf(err error) bool {
	if f, ok := errors.AsType[Fault](err); ok {
		return f == errStandby || f == errReadOnly
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return lost(pg.Code) || pg.Code == "53300"
	}
	return !distrusted(err)
}

// distrusted tells that TLS failed in a way that stays until somebody changes a certificate or a setting.
func distrusted(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	return alerted(err)
}

// alerted tells that one side ended the handshake by an alert: crypto/tls has no exported type for it but this field.
func alerted(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "remote error" || op.Op == "local error")
}
