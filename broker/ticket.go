package broker

import (
	"context"
	"errors"
)

// ticketField is where a sealed ticket stands in its bundle.
const ticketField = "ticket"

// addTicket makes a credential one that is minted when its ticket is redeemed: until then the upstream is not asked and
// its TTL does not run. What is recorded as its end is the latest that it can be.
func (b *Broker) addTicket(in *Intent, i Issued, p Profile) (Issued, error) {
	ticket := NewToken(PrefixTicket)
	v := &i.Version
	v.Unclaimed = true
	i.TicketExpiresAt = v.IssuedAt.Add(p.TicketTTL)
	v.DueAt = i.TicketExpiresAt
	v.ExpiresAt = i.TicketExpiresAt.Add(i.TTL)
	i.HardEnd = i.HardEnd.Add(p.TicketTTL)
	// Sealed, so that a repeated request gets the same ticket and the same token.
	sealed, err := sealBundle(b.Sealer, Bundle{Fields: map[string]Secret{ticketField: ticket}, TaskToken: i.Secret.TaskToken}, v.ID)
	if err != nil {
		return i, err
	}
	i.Ticket = ticket
	in.Tickets = append(in.Tickets, NewTicket{
		Credential: i.ID, Version: v.ID, SHA256: HashToken(ticket.Reveal()), Sealed: sealed, ExpiresAt: i.TicketExpiresAt,
	})
	return i, nil
}

// Redeem exchanges a ticket for its secret, once. The ticket is the proof of the right to it; client says only from where
// it came. A second redemption is ticket_redeemed and on the record, and ends the credential where the profile says so.
func (b *Broker) Redeem(ctx context.Context, client Caller, ticket string) (Issued, error) {
	issued, err := b.redeem(ctx, client, ticket)
	b.Observer.Done("redeem", issued.Profile, issued.Provider, outcomeOf(err))
	return issued, err
}

func (b *Broker) redeem(ctx context.Context, client Caller, ticket string) (Issued, error) {
	client.Name, client.Role, client.Auth = "ticket", RoleAgent, "ticket"
	if !WellFormed(PrefixTicket, ticket) {
		return Issued{}, Errorf(CodeNotFound, "there is no such ticket")
	}
	now := b.now()
	c, err := b.Ledger.Redeem(ctx, HashToken(ticket), now, now.Add(b.mintTime()), func(c Credential) Event {
		return eventOf(EventTicketRedeemed, client, now, c)
	})
	switch {
	case errors.Is(err, ErrNoSuch):
		return Issued{}, Errorf(CodeNotFound, "there is no such ticket")
	case errors.Is(err, ErrRedeemed):
		return Issued{Credential: c}, b.reused(ctx, client, c)
	case errors.Is(err, ErrVoid) && c.Version.Cause != CauseNone && c.Version.Cause != CauseExpired:
		return Issued{Credential: c}, Errorf(CodeCredentialEnded, "the credential was ended before its ticket was redeemed")
	case errors.Is(err, ErrVoid):
		return Issued{Credential: c}, Errorf(CodeTicketExpired, "the ticket has expired; the orchestrator can issue another")
	case err != nil:
		return Issued{}, err
	}
	b.Reached("after_redeem")
	issued, err := b.mint(context.WithoutCancel(ctx), client, Issued{Credential: c}, EventIssued)
	b.Reached("after_redeem_outcome")
	if e := AsError(err); e != nil { // whatever its code says of trying again
		e.Message += "; the ticket is used up: issue another"
		return issued, e
	}
	return issued, nil
}

// reused puts a second redemption on the record, for it means that somebody has a ticket that was not theirs.
func (b *Broker) reused(ctx context.Context, client Caller, c Credential) error {
	if err := b.Ledger.Record(ctx, eventOf(EventTicketReused, client, b.now(), c)); err != nil {
		return err
	}
	b.Logger.WarnContext(ctx, "ticket redeemed again", "credential_id", c.ID, "address", client.Addr)
	if p, ok := b.profile(c.Profile); ok && p.RevokeOnReuse {
		if _, err := b.endAll(ctx, client, c, CauseRevoked, "its ticket was redeemed a second time"); err != nil {
			return err
		}
	}
	return Errorf(CodeTicketRedeemed, "the ticket was redeemed before; that is on the record")
}
