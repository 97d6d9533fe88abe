package stores

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

// SecretsManager is AWS's, in all regions at once, with GetSecretValue alone. It holds the caller to its access key and to
// the service in the signature's scope; the signature itself is not computed.
type SecretsManager struct {
	*fault.Queue
	accessKeyID string

	mu      sync.Mutex
	secrets map[string]awsSecret
}

type awsSecret struct {
	text    string
	binary  []byte
	version int
	created time.Time
	deleted bool
}

// NewSecretsManager makes an empty one.
func NewSecretsManager(accessKeyID string) (*SecretsManager, error) {
	if accessKeyID == "" {
		return nil, errors.New("sandbox stores: accessKeyID is required")
	}
	return &SecretsManager{Queue: fault.New(), accessKeyID: accessKeyID, secrets: map[string]awsSecret{}}, nil
}

// Put writes a next version, as a string.
func (s *SecretsManager) Put(region, name, text string) { s.put(region, name, awsSecret{text: text}) }

// PutBinary writes a next version, as bytes.
func (s *SecretsManager) PutBinary(region, name string, data []byte) {
	s.put(region, name, awsSecret{binary: data})
}

// Delete marks a secret for deletion.
func (s *SecretsManager) Delete(region, name string) { s.put(region, name, awsSecret{deleted: true}) }

func (s *SecretsManager) put(region, name string, next awsSecret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next.version, next.created = s.secrets[region+"/"+name].version+1, time.Now()
	s.secrets[region+"/"+name] = next
}

// ServeHTTP answers one request.
func (s *SecretsManager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	credential, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=")
	scope := strings.Split(credential, "/") // key, date, region, service, …
	switch {
	case !ok || len(scope) < 5 || !same(scope[0], s.accessKeyID):
		refuseAWS(w, http.StatusBadRequest, "UnrecognizedClientException")
	case scope[3] != "secretsmanager":
		refuseAWS(w, http.StatusBadRequest, "InvalidSignatureException")
	case r.Method != http.MethodPost || r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue":
		refuseAWS(w, http.StatusBadRequest, "UnknownOperationException")
	default:
		s.Serve(w, r, Read, func(w http.ResponseWriter, r *http.Request) { s.get(w, r, scope[2]) }, func(w http.ResponseWriter, status int) {
			switch {
			case status == http.StatusTooManyRequests: // AWS's own way
				refuseAWS(w, http.StatusBadRequest, "ThrottlingException")
			case status == http.StatusForbidden:
				refuseAWS(w, http.StatusBadRequest, "AccessDeniedException")
			case status >= 500:
				refuseAWS(w, status, "InternalServiceError")
			default:
				refuseAWS(w, status, "InvalidParameterException")
			}
		})
	}
}

func (s *SecretsManager) get(w http.ResponseWriter, r *http.Request, region string) {
	var in struct{ SecretId string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil {
		refuseAWS(w, http.StatusBadRequest, "SerializationException")
		return
	}
	s.mu.Lock()
	found, ok := s.secrets[region+"/"+in.SecretId]
	s.mu.Unlock()
	switch {
	case !ok:
		refuseAWS(w, http.StatusBadRequest, "ResourceNotFoundException")
		return
	case found.deleted:
		refuseAWS(w, http.StatusBadRequest, "InvalidRequestException")
		return
	}
	arn, name := "arn:aws:secretsmanager:"+region+":123456789012:secret:"+in.SecretId+"-AbCdEf", in.SecretId
	if _, named, ok := strings.Cut(in.SecretId, ":secret:"); ok {
		arn, name = in.SecretId, named[:max(0, len(named)-len("-AbCdEf"))]
	}
	out := map[string]any{
		"ARN": arn, "Name": name,
		"VersionId": fmt.Sprintf("00000000-0000-4000-8000-%012d", found.version), "VersionStages": []string{"AWSCURRENT"},
		"CreatedDate": float64(found.created.UnixMilli()) / 1000,
	}
	if found.binary != nil {
		out["SecretBinary"] = found.binary // base64, by encoding/json
	} else {
		out["SecretString"] = found.text
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out)
}

func refuseAWS(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": "the stand-in's message: " + code})
}
