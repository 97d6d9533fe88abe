//go:build peers

package main

import (
	"bytes"
	"strings"
	"sync"
)

// peerLog keeps what the nodes log.
type peerLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *peerLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *peerLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *peerLog) tail(lines int) string {
	all := strings.SplitAfter(l.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// peerSecrets are all values that may stand nowhere but in the one answer that hands them out.
type peerSecrets struct {
	mu   sync.Mutex
	list []string
}

func (s *peerSecrets) add(values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, values...)
}

// in gives the number of secrets that a text holds.
func (s *peerSecrets) in(text string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.list {
		if strings.Contains(text, secret) {
			n++
		}
	}
	return n
}
