// Package audittest is for tests that set the ledger by hand, where the record must not contradict it.
package audittest

// BearOut has the event of each issuance say of its version's state and end what the ledger says, as SQL of two statements
// for the database's owner.
const BearOut = `UPDATE events e SET body = regexp_replace(regexp_replace(e.body, ',"revocation":.*$', '}'), '"state":"[a-z]+"', '"state":"' || v.state || '"') FROM versions v
	WHERE e.type = 'credential.issued' AND v.result = '';
	UPDATE events e SET body = regexp_replace(regexp_replace(e.body, '"state":"[a-z]+"', '"state":"' || v.state || '"'), '(,"revocation":.*)?}$',
		',"revocation":{"result":"' || v.result || '","effective_at":"' || to_char(v.effective_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '","basis":"' || v.basis || '"}}')
	FROM versions v WHERE e.type = 'credential.issued' AND v.result <> ''`
