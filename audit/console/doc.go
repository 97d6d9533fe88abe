// Package console is the auditor's pages: the record, the ledger and the tree, for people who would rather look than read.
//
// It decides what is shown together and in which words, and it changes nothing but the session of whoever looks. Every
// page that is shown is on the record before it is sent. The pages are made on the server and need no script; the one
// that there is replaces what changed. Nothing is fetched from anywhere else.
//
// A session is a sealed cookie that names a token by its hash. The token is looked up again at each request, so a
// session ends with it, on every replica, and nothing is kept in memory.
//
// The package refuses to know where anything is kept: what it reads, it reads through its interfaces.
package console
