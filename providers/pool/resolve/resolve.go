// Package resolve reads secrets by reference, from where operators keep them, and tells when they change. It decides what
// a reference means and what a store's answer proves; it knows nothing of pools and keeps no value.
//
// References, which are safe to print:
//
//	env:NAME                                        this process's environment
//	file:/path                                      a file
//	aws-sm:REGION/NAME[#field]                      AWS Secrets Manager; NAME may be an ARN
//	gcp-sm:projects/P/secrets/S[/versions/V][#field]   Google Secret Manager; without a version the latest
//	vault:MOUNT/PATH#field                          Vault or OpenBao, KV version 2; MOUNT is the first segment
//
// With a field the secret is a JSON object, and the value is that member of it, a string. A value that cannot travel in
// a header and in an environment variable is an error: see broker.CheckSecretValue. A file counts once it is whole: see
// broker.SecretFiles. Stores write a version of a secret at once, so what they answer counts at the first look. No
// error repeats a value, nor a store's own text.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const maxReply = 1 << 20 // bytes of a store's answer

// Config says how stores are reached. The zero value reads env: and file:, and the clouds by this machine's own identity.
type Config struct {
	Vault Vault `yaml:"vault"`
	AWS   AWS   `yaml:"aws"`
	GCP   GCP   `yaml:"gcp"`
}

// Wire is how stores are reached. The zero value is fine.
type Wire struct {
	// Client reaches AWS and Google, and Vault unless that has a CAFile; its redirect policy is not used, for none is
	// followed. Nil: one of its own. Time-outs are the context's.
	Client *http.Client
	// Clock is what dates in answers are compared with. Nil: time.Now.
	Clock func() time.Time
}

// Check returns all that is wrong; pointers are paths within the section, as in "vault.address".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	c.Vault.check(&f)
	c.AWS.check(&f)
	c.GCP.check(&f)
	return f
}

// CheckRef tells what is wrong with a reference's form, or that its store is not configured. It does no I/O.
func (c Config) CheckRef(ref string) error {
	p, err := parse(ref)
	if err == nil && p.kind == "vault" && c.Vault.Address == "" {
		return errors.New("a vault: reference needs the address of a Vault in the configuration")
	}
	return err
}

// Local tells whether reading a reference asks nobody but this machine.
func Local(ref string) bool { return strings.HasPrefix(ref, "env:") || strings.HasPrefix(ref, "file:") }

// store reads one reference's secret, whole.
type store interface {
	// read answers the text and, where the store has versions, which one it is.
	read(ctx context.Context, name string) (text []byte, version string, err error)
}

// Resolver reads references. It is safe for concurrent use.
type Resolver struct {
	cfg   Config
	vault *vault // nil: not configured
	aws   *awsStore
	gcp   *gcpStore
	files *broker.SecretFiles
}

// New makes a Resolver. It does no I/O but reading the CAFile.
func New(cfg Config, reach Wire) (*Resolver, error) {
	if found := cfg.Check(); len(found) > 0 {
		return nil, errors.New("resolve: " + found[0].Pointer + " " + found[0].Reason)
	}
	w := newWire(reach.Client, reach.Clock)
	r := &Resolver{cfg: cfg, gcp: newGCP(cfg.GCP, w), files: &broker.SecretFiles{}}
	r.aws = newAWS(cfg.AWS, w, r.files)
	if cfg.Vault.Address != "" {
		var err error
		if r.vault, err = newVault(cfg.Vault, w, r.files); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// parsed is a reference in its parts.
type parsed struct{ kind, name, field string }

var (
	awsName  = regexp.MustCompile(`^[a-z]{2,10}(-[a-z0-9]+)+-\d{1,2}/[A-Za-z0-9/_+=.@:!-]{1,1000}$`)
	gcpName  = regexp.MustCompile(`^projects/[a-z0-9][a-z0-9.:-]{0,63}/secrets/[A-Za-z0-9_-]{1,255}(/versions/[A-Za-z0-9_-]{1,63})?$`)
	segment  = regexp.MustCompile(`^[A-Za-z0-9._:@+=~ -]{1,255}$`)
	errForm  = errors.New("must be a reference, env:NAME, file:/path, aws-sm:REGION/NAME, gcp-sm:projects/P/secrets/S or vault:MOUNT/PATH#FIELD, and never the secret itself")
	errField = errors.New("the field after # is empty")
)

// Close closes idle connections.
func (r *Resolver) Close() {
	r.aws.close()
	if r.vault != nil && r.vault.client.Transport != http.DefaultTransport { // which is shared by the process
		r.vault.client.CloseIdleConnections()
	}
}

// parse repeats nothing of a wrong reference: somebody may have pasted the secret itself.
func parse(ref string) (parsed, error) {
	kind, rest, ok := strings.Cut(ref, ":")
	if !ok {
		return parsed{}, errForm
	}
	if kind == "env" || kind == "file" {
		return parsed{kind: kind, name: rest}, broker.Ref(ref).Check()
	}
	name, field, fielded := strings.Cut(rest, "#")
	p := parsed{kind, name, field}
	if fielded && field == "" {
		return p, errField
	}
	switch kind {
	case "aws-sm":
		if !awsName.MatchString(name) {
			return p, errors.New("an aws-sm: reference takes a region, a slash and a secret's name or ARN")
		}
	case "gcp-sm":
		if !gcpName.MatchString(name) {
			return p, errors.New("a gcp-sm: reference takes projects/P/secrets/S, and may take /versions/V")
		}
	case "vault":
		return p, checkVaultName(p)
	default:
		return p, errForm
	}
	return p, nil
}

func checkVaultName(p parsed) error {
	parts := strings.Split(p.name, "/")
	for _, part := range parts {
		if !segment.MatchString(part) || strings.Trim(part, ".") == "" {
			return errors.New("a vault: reference takes a mount and a path, of A-Z a-z 0-9 . _ : @ + = ~ - and spaces between slashes")
		}
	}
	if len(parts) < 2 || p.field == "" {
		return errors.New("a vault: reference takes MOUNT/PATH#FIELD")
	}
	return nil
}

// Check tells what is wrong with a reference's form, or that its store is not configured. It does no I/O.
func (r *Resolver) Check(ref string) error { return r.cfg.CheckRef(ref) }

// Local reads an env: or file: reference. again is not zero while a file may still be being written: until it counts
// the value is the one before, or the error is broker.ErrUnsettled.
func (r *Resolver) Local(ref string) (value broker.Secret, again time.Duration, err error) {
	value, again, err = r.files.Resolve(broker.Ref(ref))
	if err != nil {
		return broker.Secret{}, again, broker.Errorf(broker.CodeUpstreamRefused, "%s: the operator should check it", err).Because(err)
	}
	return value, again, nil
}

// Resolve reads the present value, and its version where the store has versions. It asks once and retries nothing.
func (r *Resolver) Resolve(ctx context.Context, ref string) (broker.Secret, string, error) {
	if err := r.Check(ref); err != nil {
		return broker.Secret{}, "", broker.Errorf(broker.CodeUpstreamRefused, "a reference to a key has not the form of one: the operator should check it").Because(err)
	}
	if Local(ref) {
		value, _, err := r.Local(ref)
		return value, "", err
	}
	p, _ := parse(ref)
	var from store
	switch p.kind {
	case "aws-sm":
		from = r.aws
	case "gcp-sm":
		from = r.gcp
	case "vault":
		from = r.vault
	}
	text, version, err := from.read(ctx, p.name)
	if err != nil {
		return broker.Secret{}, "", about(ref, err)
	}
	value, err := pick(text, p.field)
	if err != nil {
		return broker.Secret{}, "", broker.Errorf(broker.CodeUpstreamRefused, "%s %s: the operator should check it", ref, err)
	}
	return value, version, nil
}

// about puts the reference before an error's message.
func about(ref string, err error) error {
	if e, ok := errors.AsType[*broker.Error](err); ok {
		with := *e
		with.Message = fmt.Sprintf("%s: %s", ref, e.Message)
		return &with
	}
	return err
}

// pick takes the value out of a secret's text.
func pick(text []byte, field string) (broker.Secret, error) {
	value := string(text)
	if field != "" {
		var err error
		if value, err = member(text, field); err != nil {
			return broker.Secret{}, err
		}
	}
	return broker.NewSecretValue(value)
}
