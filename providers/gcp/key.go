package gcp

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"regexp"
	"strings"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"google.golang.org/grpc/codes"

	"github.com/taskpass/taskpass/broker"
)

const (
	keyBits   = 2048
	keysAtOne = 10              // Google's limit for an account
	keysPause = 5 * time.Minute // when it is full: keys of others' may end at any time

	traceKeyID = "key_id"
)

// mintKey makes a key pair and has Google take its public half, in a certificate that ends with the version and bears the
// version's id: by that a key is found whose upload was not answered.
func (p *Provider) mintKey(ctx context.Context, c broker.Credential, h *hold) (broker.Minted, error) {
	private, certificate, err := newKey(c.Version.ID, p.clock(), c.Version.ExpiresAt)
	if err != nil {
		return broker.Minted{}, nothing(broker.Errorf(broker.CodeUnavailable, "no key could be made").Because(err))
	}
	var out *adminpb.ServiceAccountKey
	var last error
	err = p.ask(ctx, c, h, func(ctx context.Context) error {
		out, last = p.clients.admin.UploadServiceAccountKey(ctx, &adminpb.UploadServiceAccountKeyRequest{
			Name: resource(h.email), PublicKeyData: certificate,
		})
		return last
	})
	if err != nil {
		if a := read(last); isNothing(err) && (a.code == codes.FailedPrecondition || a.code == codes.ResourceExhausted) && p.isFull(ctx, h.email) {
			return broker.Minted{}, nothing(full(h.email))
		}
		return broker.Minted{}, err
	}
	of, id, ok := strings.Cut(out.GetName(), "/keys/")
	if !ok || !strings.HasSuffix(of, "/serviceAccounts/"+h.email) || !broker.ValidID(id) || !sameSecond(out.GetValidBeforeTime().AsTime(), c.Version.ExpiresAt) {
		// It stands at Google, so this is no proof of anything: its end deletes it.
		return broker.Minted{}, broker.Errorf(broker.CodeUpstreamError, "Google took the key, and not for the account or not with the end that its certificate has").
			Because(broker.VendorAnswer{Vendor: "Google", Action: "UploadServiceAccountKey", Code: codes.OK.String()})
	}
	text, err := p.keyFile(h.email, id, private)
	if err != nil {
		return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "the key could not be written down").Because(err)
	}
	secret := broker.NewSecret(text)
	h.settled = p.clock().Add(settleAfter)
	return broker.Minted{
		Secret: broker.Bundle{
			Type: "gcp_service_account_key", Primary: "google_application_credentials",
			Fields: map[string]broker.Secret{"google_application_credentials": secret}, // the content of the file that it names
			Env:    map[string]broker.Secret{"GOOGLE_CREDENTIALS": secret},
		},
		UpstreamExpiresAt: out.GetValidBeforeTime().AsTime().UTC(), UpstreamIDs: []string{id, h.email}, OwnID: true,
		Trace: map[string]string{
			traceKeyID: id, "common_name": string(c.Version.ID),
		},
	}, nil
}

func sameSecond(got, want time.Time) bool {
	return !got.After(want) && want.Sub(got) < 2*time.Second
}

// newKey makes a private key, and the self-signed certificate that bounds it. Certificates count in whole seconds: it ends
// at the one before the end.
func newKey(id broker.VersionID, now, end time.Time) (private, certificate []byte, err error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: string(id)},
		NotBefore: now.UTC().Truncate(time.Second), NotAfter: end.UTC().Truncate(time.Second),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// keyFile is the JSON that GOOGLE_APPLICATION_CREDENTIALS names: https://google.aip.dev/auth/4112
func (p *Provider) keyFile(email, id string, private []byte) (string, error) {
	_, domain, _ := strings.Cut(email, "@")
	tokenURI := p.cfg.Endpoints.Token
	if tokenURI == "" {
		tokenURI = googleToken
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": strings.TrimSuffix(domain, ".iam.gserviceaccount.com"), "private_key_id": id,
		"private_key": string(private), "client_email": email, "token_uri": tokenURI, "universe_domain": "googleapis.com",
	})
	return string(text), err
}

// isFull tells whether an account holds as many keys as Google lets it: its refusal does not say.
func (p *Provider) isFull(ctx context.Context, email string) bool {
	keys, err := p.userKeys(ctx, email)
	return err == nil && len(keys) >= keysAtOne
}

func full(email string) error {
	e := broker.Errorf(broker.CodeQuotaExceeded, "%s holds the %d keys that Google lets an account have: end some, or let the profile have more accounts", email, keysAtOne)
	e.RetryAfter = keysPause
	return e
}

func (p *Provider) userKeys(ctx context.Context, email string) ([]*adminpb.ServiceAccountKey, error) {
	out, err := p.clients.admin.ListServiceAccountKeys(ctx, &adminpb.ListServiceAccountKeysRequest{
		Name: resource(email), KeyTypes: []adminpb.ListServiceAccountKeysRequest_KeyType{adminpb.ListServiceAccountKeysRequest_USER_MANAGED},
	})
	return out.GetKeys(), err
}

// revokeKey deletes a version's key. "Deleting a service account key does not revoke short-lived credentials that have been
// issued based on the service account key": they may live for an hour more, unless nobody ever had the key.
func (p *Provider) revokeKey(ctx context.Context, c broker.Credential, email string) (broker.Revocation, error) {
	found, err := p.deleteKeys(ctx, c, email)
	if err != nil {
		return broker.Revocation{}, err
	}
	now := p.clock().UTC()
	// What was just uploaded may not be on the list yet, so that its absence is no proof.
	if seen := c.Version.IssuedAt.Add(p.cfg.skew()); !found && now.Before(seen) {
		e := broker.Errorf(broker.CodeUpstreamError, "the key is not on Google's list, where a fresh one may not be yet: looking again")
		e.RetryAfter = seen.Sub(now)
		return broker.Revocation{}, e
	}
	done := broker.Revocation{Result: broker.ResultDenied, EffectiveAt: now, Basis: "key_deleted"}
	if c.Version.Fingerprint != nil {
		done.EffectiveAt = now.Add(keyTokenLife)
	}
	return done, nil
}

// deleteKeys deletes the keys of a version. found tells whether Google did: that it finds nothing to delete is no proof,
// here as on its list.
func (p *Provider) deleteKeys(ctx context.Context, c broker.Credential, email string) (found bool, err error) {
	keys, err := p.userKeys(ctx, email)
	if err != nil {
		return false, read(err).meaning(email)
	}
	for _, k := range keys {
		mine, err := p.isOf(ctx, c, email, k)
		if err != nil {
			return false, err
		}
		if !mine {
			continue
		}
		watched, _ := watch(ctx, c.Version.ID)
		err = p.clients.admin.DeleteServiceAccountKey(watched, &adminpb.DeleteServiceAccountKeyRequest{Name: k.GetName()})
		if a := read(err); err != nil && a.code != codes.NotFound {
			return false, a.meaning(email)
		}
		found = found || err == nil
	}
	return found, nil
}

// isOf tells whether a key was made for the version: by its id, or, where its upload was not answered, by the name in its
// certificate. A key that ends with the version and bears another's name may be it all the same: then nobody can say
// that it is gone.
func (p *Provider) isOf(ctx context.Context, c broker.Credential, email string, k *adminpb.ServiceAccountKey) (bool, error) {
	if id := c.Version.Trace[traceKeyID]; id != "" {
		return strings.HasSuffix(k.GetName(), "/keys/"+id), nil
	}
	full, err := p.clients.admin.GetServiceAccountKey(ctx, &adminpb.GetServiceAccountKeyRequest{
		Name: k.GetName(), PublicKeyType: adminpb.ServiceAccountPublicKeyType_TYPE_X509_PEM_FILE,
	})
	switch a := read(err); {
	case err == nil:
	case a.code == codes.NotFound: // deleted by another attempt meanwhile, or not to be seen yet
		return false, nil
	default:
		return false, a.meaning(email)
	}
	name, made := bears(full.GetPublicKeyData())
	if name == string(c.Version.ID) {
		return true, nil
	}
	if !made && sameSecond(k.GetValidBeforeTime().AsTime(), c.Version.ExpiresAt) {
		return false, broker.Errorf(broker.CodeUpstreamError, "a key of %s ends with the version and does not say whose it is: the operator should look at it", email)
	}
	return false, nil
}

var versionName = regexp.MustCompile(`^[a-z2-7]{16}$`)

// bears is the name in a certificate, and whether it is one that the broker gives.
func bears(certificate []byte) (name string, made bool) {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return "", false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", false
	}
	return cert.Subject.CommonName, versionName.MatchString(cert.Subject.CommonName)
}
