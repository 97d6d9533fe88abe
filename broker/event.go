package broker

import "time"

// EventType names what happened. The part before the dot is the noun.
type EventType string

const (
	EventIntended        EventType = "credential.intended"         // on the ledger, the upstream not yet asked
	EventIssued          EventType = "credential.issued"           // minted, recorded, handed out
	EventRefused         EventType = "credential.refused"          // policy said no; Faults say why
	EventFailed          EventType = "credential.failed"           // the upstream surely made nothing
	EventLost            EventType = "credential.lost"             // the upstream may have made it; treated as alive
	EventRevokeAsked     EventType = "credential.revoke_requested" // acknowledged; durable from here on
	EventRevoked         EventType = "credential.revoked"          // what was achieved is in Revocation
	EventExpired         EventType = "credential.expired"          // ended at its time
	EventRevokeDeferred  EventType = "credential.revoke_deferred"  // nothing can end it early; it dies at EffectiveAt
	EventStuck           EventType = "credential.stuck"            // attempts spent; an operator is needed
	EventRefreshed       EventType = "credential.refreshed"        // the next version is active; the one before stays for the overlap
	EventResolved        EventType = "credential.resolved"         // its secret was given to its holder again
	EventRotated         EventType = "credential.rotated"          // its key has another value; the next version has it
	EventReported        EventType = "credential.reported"         // its holder says what the upstream answered
	EventKeyAdded        EventType = "key.added"                   // to a pool, by an operator
	EventKeyRotating     EventType = "key.rotating"                // its value has changed, and its holders move
	EventKeyRotated      EventType = "key.rotated"                 // every holder has moved, or the deadline has come
	EventKeyAborted      EventType = "key.rotation_aborted"        // it has its value of before again
	EventKeyQuarantined  EventType = "key.quarantined"             // not handed out until its value has changed
	EventKeyFreed        EventType = "key.freed"                   // out of quarantine, by an operator
	EventKeyRetired      EventType = "key.retired"                 // never handed out again; or its old value is refused by the vendor
	EventTicketCreated   EventType = "ticket.created"              // on the ledger; the upstream is asked when it is redeemed
	EventTicketRedeemed  EventType = "ticket.redeemed"             // by whoever held it; the upstream not yet asked
	EventTicketReused    EventType = "ticket.reused"               // a second redemption: somebody has what is not theirs
	EventTicketExpired   EventType = "ticket.expired"              // nobody redeemed it; the upstream was never asked
	EventTaskEnded       EventType = "task.ended"                  // nothing is issued for it any more; what it holds is being ended
	EventUpstreamEdited  EventType = "upstream.edited"             // somebody else changed what the broker keeps there; it was set right
	EventUpstreamFilling EventType = "upstream.filling"            // what the broker keeps there is nearly full
	EventUpstreamCutOff  EventType = "upstream.cut_off"            // all that was issued there before a moment is refused
	EventTokenCreated    EventType = "token.created"
	EventTokenRevoked    EventType = "token.revoked"
	EventConfigLoaded    EventType = "config.loaded"
	EventAuditRead       EventType = "audit.read"
	EventAuditTampered   EventType = "audit.tampered" // the tree does not extend what was signed; Reason says how that is known
)

// EventTypes lists all types, in the order above.
func EventTypes() []EventType {
	return []EventType{
		EventIntended, EventIssued, EventRefused, EventFailed, EventLost, EventRevokeAsked, EventRevoked, EventExpired,
		EventRevokeDeferred, EventStuck, EventRefreshed, EventResolved, EventRotated, EventReported, EventKeyAdded,
		EventKeyRotating, EventKeyRotated, EventKeyAborted, EventKeyQuarantined, EventKeyFreed, EventKeyRetired, EventTicketCreated, EventTicketRedeemed,
		EventTicketReused, EventTicketExpired, EventTaskEnded, EventUpstreamEdited, EventUpstreamFilling,
		EventUpstreamCutOff, EventTokenCreated, EventTokenRevoked, EventConfigLoaded, EventAuditRead, EventAuditTampered,
	}
}

// Event is one audit record: who, what, when, why. It never holds a secret.
type Event struct {
	ID          string
	At          time.Time
	Type        EventType
	Caller      Caller
	TaskID      string
	ParentTask  string
	AgentID     string
	Profile     string
	Provider    string
	Requested   []string
	Scopes      []string
	TTL         time.Duration
	Credential  CredentialID
	Version     int
	VersionID   VersionID
	State       State // the version's state after the event
	Upstream    string
	UpstreamIDs []string
	Trace       map[string]string
	Fingerprint []byte
	Cause       Cause
	Reason      string // the caller's own words
	Code        Code   // the error, where it is one
	Faults      []Fault
	Revocation  Revocation
	ExpiresAt   time.Time
}

// eventOf is an event about a credential's version, as it stands.
func eventOf(t EventType, caller Caller, at time.Time, c Credential) Event {
	v := c.Version
	return Event{
		ID: NewEventID(), At: at, Type: t, Caller: caller,
		TaskID: c.TaskID, ParentTask: c.Parent, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider,
		Requested: c.Requested, Scopes: c.Scopes, TTL: c.TTL,
		Credential: c.ID, Version: v.Number, VersionID: v.ID, State: v.State,
		Upstream: v.Upstream, UpstreamIDs: v.UpstreamIDs, Trace: v.Trace, Fingerprint: v.Fingerprint,
		Cause: v.Cause, Reason: v.Reason, Code: v.LastError, Revocation: v.Revocation, ExpiresAt: v.ExpiresAt,
	}
}
