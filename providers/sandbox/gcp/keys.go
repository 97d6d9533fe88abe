package gcp

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // a key's id is 40 hex digits, and no secret
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"math/big"
	"slices"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// addKey takes a certificate's public key as a key of the account. With s.mu held.
func (s *Server) addKey(a *account, data []byte) (*key, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, invalidArgument("public_key_data", "Must be an X.509 certificate in PEM form.")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, invalidArgument("public_key_data", "Must be an X.509 certificate in PEM form.")
	}
	public, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || public.N.BitLen() < 1024 {
		return nil, invalidArgument("public_key_data", "Must hold an RSA public key.")
	}
	if len(a.keys) >= maxKeys {
		return nil, s.tooManyKeys()
	}
	raw, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, invalidArgument("public_key_data", "Must hold an RSA public key.")
	}
	sum := sha1.Sum(append([]byte(a.email), raw...)) //nolint:gosec // as above
	id := hex.EncodeToString(sum[:])
	if a.keys[id] != nil {
		return nil, refuse(codes.AlreadyExists, "The key already exists.")
	}
	k := &key{id: id, account: a, public: public, certificate: cert, pem: bytes.Clone(data), hidden: s.newHiding()}
	if s.cfg.Recertify {
		if k.pem, err = s.recertify(k); err != nil {
			return nil, refuse(codes.Internal, "signing failed")
		}
	}
	a.keys[id] = k
	return k, nil
}

// recertify shows a key in a certificate that names the account, signed by the server.
func (s *Server) recertify(k *key) ([]byte, error) {
	signer, err := s.signing()
	if err != nil {
		return nil, err
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: k.account.uniqueID},
		NotBefore: k.certificate.NotBefore, NotAfter: k.certificate.NotAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, own, own, k.public, signer)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func (s *Server) tooManyKeys() error {
	if s.cfg.KeysExhausted {
		return refuse(codes.ResourceExhausted, "Maximum number of keys on account reached.",
			&errdetails.RetryInfo{RetryDelay: durationpb.New(86401 * time.Second)})
	}
	return refuse(codes.FailedPrecondition, "Precondition check failed.")
}

func (s *Server) describeKey(k *key) *adminpb.ServiceAccountKey {
	return &adminpb.ServiceAccountKey{
		Name:            "projects/" + s.cfg.Project + "/serviceAccounts/" + k.account.email + "/keys/" + k.id,
		KeyAlgorithm:    adminpb.ServiceAccountKeyAlgorithm_KEY_ALG_RSA_2048,
		ValidAfterTime:  timestamppb.New(k.certificate.NotBefore),
		ValidBeforeTime: timestamppb.New(k.certificate.NotAfter.Add(s.cfg.Overlong)),
		KeyOrigin:       adminpb.ServiceAccountKeyOrigin_USER_PROVIDED,
		KeyType:         adminpb.ListServiceAccountKeysRequest_USER_MANAGED,
	}
}

func (k *key) rawPublic() []byte {
	raw, err := x509.MarshalPKIXPublicKey(k.public)
	if err != nil {
		return nil // it was marshalled when it was added
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: raw})
}

// valid tells whether the key may sign at a time: its certificate's validity bounds it.
func (k *key) valid(at time.Time) bool {
	return !at.Before(k.certificate.NotBefore) && at.Before(k.certificate.NotAfter)
}

func sortedKeys(a *account) []*key {
	var list []*key
	for _, id := range slices.Sorted(maps.Keys(a.keys)) {
		list = append(list, a.keys[id])
	}
	return list
}
