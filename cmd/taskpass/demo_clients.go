package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/sandbox"
)

// problemError is an answer of the broker that is not the one hoped for.
type problemError struct{ client.Problem }

func (p *problemError) Error() string {
	return fmt.Sprintf("the broker answered %d %s: %s", p.Status, p.Code, p.Detail)
}

func asProblem(status int, body []byte) error {
	p := &problemError{}
	if err := json.Unmarshal(body, &p.Problem); err != nil || p.Code == "" {
		return fmt.Errorf("the broker answered %d and no problem", status)
	}
	return p
}

func (s *story) client(role string) (*client.ClientWithResponses, error) {
	token := s.stack.Tokens[role]
	return client.NewClientWithResponses(s.stack.BaseURL, client.WithRequestEditorFn(
		func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+token.Reveal())
			return nil
		}))
}

func (s *story) issue(ctx context.Context, r client.IssueRequest) (*client.IssuedCredential, error) {
	api, err := s.client("orchestrator")
	if err != nil {
		return nil, err
	}
	answer, err := api.IssueCredentialWithResponse(ctx, nil, r)
	if err != nil {
		return nil, err
	}
	if answer.JSON201 == nil {
		return nil, asProblem(answer.StatusCode(), answer.Body)
	}
	return answer.JSON201, nil
}

func (s *story) revoke(ctx context.Context, id string) (*client.Credential, int, error) {
	api, err := s.client("orchestrator")
	if err != nil {
		return nil, 0, err
	}
	answer, err := api.RevokeCredentialWithResponse(ctx, id, client.RevokeRequest{Reason: "the demo ends it"})
	if err != nil {
		return nil, 0, err
	}
	switch {
	case answer.JSON200 != nil:
		return answer.JSON200, answer.StatusCode(), nil
	case answer.JSON202 != nil:
		return answer.JSON202, answer.StatusCode(), nil
	}
	return nil, 0, asProblem(answer.StatusCode(), answer.Body)
}

// s3Agent is an agent with nothing but the secret it was given.
type s3Agent struct{ *s3.Client }

func newS3(endpoint string, secret client.Secret) s3Agent {
	return s3Agent{s3.New(s3.Options{
		Region: secret.Env["AWS_REGION"], BaseEndpoint: &endpoint, UsePathStyle: true, Retryer: aws.NopRetryer{},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		Credentials: credentials.NewStaticCredentialsProvider(
			secret.Env["AWS_ACCESS_KEY_ID"], secret.Env["AWS_SECRET_ACCESS_KEY"], secret.Env["AWS_SESSION_TOKEN"]),
	})}
}

func (a s3Agent) read(ctx context.Context, key string) error {
	out, err := a.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(sandbox.Bucket), Key: &key})
	if err == nil {
		err = out.Body.Close()
	}
	return err
}

func (a s3Agent) write(ctx context.Context, key string) error {
	_, err := a.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(sandbox.Bucket), Key: &key, Body: strings.NewReader("x")})
	return err
}

// expectDenied is nil only for a definite 403.
func expectDenied(err error) error {
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok && response.HTTPStatusCode() == http.StatusForbidden {
		return nil
	}
	return fmt.Errorf("want a refusal, got %w", orNobody(err))
}

var errAllowed = errors.New("no refusal")

func orNobody(err error) error {
	if err == nil {
		return errAllowed
	}
	return err
}

func callModel(ctx context.Context, endpoint, key string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/v1/messages", strings.NewReader(`{"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Api-Key", key)
	answer, err := (&http.Client{}).Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the model API answered %s", answer.Status)
	}
	return nil
}
