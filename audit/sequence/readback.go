package sequence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/taskpass/taskpass/audit/tree"
)

// Reader reads back what was published before this process began.
type Reader interface {
	// Newest gives the newest checkpoints at one place, in any order. None is no error: a log begins some day.
	Newest(ctx context.Context, keys *tree.Keys) ([]tree.Checkpoint, error)
}

// ErrUnread says that a place that was published to could not be read.
var ErrUnread = errors.New("nothing is signed before what was published has been read back")

const (
	readLimit = time.Minute // for one place
	maxPause  = time.Minute // the longest between two tries
)

// awaitPublished tries until every place has been read, or ctx ends. The record and its lag grow meanwhile.
func (s *Sequencer) awaitPublished(ctx context.Context) {
	for pause := s.Every; ; pause = min(2*pause, maxPause) {
		err := s.readBack(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.Logger.Error("the audit tree waits: it will be tried again", "error", err, "again_in", pause.String())
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// readBack reads each place that was not read yet, outside any transaction. One that fails keeps no other from being read.
func (s *Sequencer) readBack(ctx context.Context) error {
	s.mu.Lock()
	unread := s.unread
	s.mu.Unlock()
	var still []Reader
	var found []tree.Checkpoint
	var errs []error
	for _, place := range unread {
		newest, err := s.readOne(ctx, place)
		if err != nil {
			still, errs = append(still, place), append(errs, err)
		}
		found = append(found, newest...)
	}
	s.mu.Lock()
	s.unread, s.held = still, append(s.held, found...)
	s.mu.Unlock()
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", ErrUnread, errors.Join(errs...))
	}
	return nil
}

// readOne gives the newest checkpoints of a place: all that are about as many events, for they may contradict each other.
func (s *Sequencer) readOne(ctx context.Context, place Reader) (newest []tree.Checkpoint, err error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	list, err := place.Newest(ctx, s.keys)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if len(newest) > 0 && c.Size > newest[0].Size {
			newest = nil
		}
		if len(newest) == 0 || c.Size == newest[0].Size {
			newest = append(newest, c)
		}
	}
	return newest, nil
}
