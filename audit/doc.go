// Package audit keeps the record that an auditor can search: what happened, to whom, by whom, and why.
//
// It decides the form of an event (one canonical JSON, documented at record) and how events are found again. It refuses
// to know why an event happened: the broker says that. Events are only ever added; the service's database role can
// neither alter nor delete one.
package audit
