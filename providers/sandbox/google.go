package sandbox

import (
	"encoding/hex"
	"fmt"
	"net"

	"github.com/taskpass/taskpass/providers/sandbox/gcp"
)

// gcpSlots is how many tasks may hold an account of their own at once.
const gcpSlots = 4

// newGCP makes the project: one account that is shared, and some that are held by one task at a time.
func (s *Sandbox) newGCP(cfg Config) (err error) {
	s.GCPBrokerToken = "ya29.sandbox-" + random(20, hex.EncodeToString)
	accounts := []gcp.Account{{Name: "shared"}}
	for i := range gcpSlots {
		accounts = append(accounts, gcp.Account{Name: fmt.Sprintf("slot-%d", i+1)})
	}
	s.GCP, err = gcp.New(gcp.Config{BrokerToken: s.GCPBrokerToken, Accounts: accounts, Now: cfg.Now})
	if err != nil {
		return err
	}
	s.GCP.CreateBucket(Bucket)
	for i, a := range accounts {
		email := s.GCP.Email(a.Name)
		s.GCP.Grant(Bucket, email, "roles/storage.objectUser")
		if i == 0 {
			s.GCPShared = email
		} else {
			s.GCPSlots = append(s.GCPSlots, email)
		}
	}
	return nil
}

// listenRPC serves Google's gRPC services on a port of their own.
func (s *Sandbox) listenRPC() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	s.GCPRPC = "http://" + l.Addr().String()
	s.running.Go(func() { _ = s.GCP.ServeGRPC(l) }) // returns at Close
	return nil
}
