package config_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

// small is the least that is accepted. Cases change it by replacements.
const small = `database: {url: "env:DB"}
seal: {keyset: "env:KEYSET"}
profiles:
  a:
    provider: pool
    ttl: {default: 10m, max: 1h}
    allow:
      - callers: [bob]
    pool:
      name: p
      scopes: [s, t]
      disclosed: accept
      keys:
        - {name: k, value: "env:K"}
`

// second is a profile to stand below small.
const second = `  b:
    provider: pool
    ttl: {default: 10m, max: 1h}
    allow:
      - callers: [bob]
    pool:
      name: q
      scopes: [s]
      keys:
        - {name: k, value: "env:L"}
`

const awsSection = `    aws:
      role_arn: arn:aws:iam::123456789012:role/x
      region: eu-west-1
      scopes: {s: {statements: [{actions: ["a:b"], resources: ["*"]}]}}
`

func TestFaults(t *testing.T) {
	t.Parallel()
	type edits []string // old, new, …
	for name, c := range map[string]struct {
		edits edits
		want  []string
	}{
		"unknown field at the top": {edits{"seal:", "colour: red\nseal:"}, []string{
			"2: colour: is not a field here; the fields are audit, concurrency, database, limits, listen, log, profiles, seal, shutdown_timeout, tls, upstream_timeout"}},
		"an audit section without anything": {edits{"seal:", "audit: {}\nseal:"}, []string{
			"2: audit.key: is required: a reference, env:NAME or file:/path",
			"2: audit.name: is required: the name of the log, such as taskpass.example/log"}},
		"a pasted audit key": {edits{"seal:", "audit: {name: \"a b\", key: PRIVATE+KEY+a+1+C4n4ry, old_keys: [x]}\nseal:"}, []string{
			"2: audit.key: must be a reference, env:NAME or file:/path, and never the secret itself",
			"2: audit.name: is not 1-128 visible ASCII characters without a +",
			"2: audit.old_keys[0]: must be a reference, env:NAME or file:/path, and never the secret itself"}},
		"where checkpoints cannot go": {edits{"seal:", `audit:
  name: a
  key: env:K
  publish:
    - {}
    - {file: checkpoints}
    - {file: /a, http: "https://b"}
    - {http: "https://u:C4n4ry@b/"}
    - {http: "ftp://b", authorization: C4n4ry}
    - {s3: bucket, every: 2m}
    - {s3: "s3://b", endpoint: b, authorization: env:A}
    - {file: /a, region: r}
    - {http: "https://b", read_back: false}
    - {s3: "s3://b", read_back: "no"}
seal:`}, []string{
			"6: audit.publish[0]: is not one of file, http and s3",
			"7: audit.publish[1].file: is not an absolute path of a file",
			"8: audit.publish[2]: is not one of file, http and s3",
			"9: audit.publish[3].http: is not a URL that begins with http:// or https://, without a user or a password",
			"10: audit.publish[4].authorization: must be a reference, env:NAME or file:/path, and never the secret itself",
			"10: audit.publish[4].http: is not a URL that begins with http:// or https://, without a user or a password",
			"11: audit.publish[5].every: is not between 1s and 1m",
			"11: audit.publish[5].s3: is not a URL that begins with s3://, without a user or a password",
			"12: audit.publish[6].authorization: belongs to http",
			"12: audit.publish[6].endpoint: is not a URL that begins with http:// or https://, without a user or a password",
			"13: audit.publish[7].region: belongs to s3",
			"14: audit.publish[8].read_back: belongs to s3",
			"15: audit.publish[9].read_back: is neither true nor false"}},
		"unknown field in a provider's section": {edits{"name: p", "nam: p"}, []string{
			"9: profiles.a.pool.name: is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots",
			"10: profiles.a.pool.nam: is not a field here; the fields are check_every, deadline, disclosed, env, keys, max_holders, max_refusals, name, probe, rest, reuse, scopes, select, share_percent, stores, vendor"}},
		"unknown field that may be a secret": {edits{"name: p", "name: p\n      sk_live_4eC39Hq: x"}, []string{
			"11: profiles.a.pool.?: is not a field here; the fields are check_every, deadline, disclosed, env, keys, max_holders, max_refusals, name, probe, rest, reuse, scopes, select, share_percent, stores, vendor"}},
		"that field twice": {edits{"name: p", "name: p\n      sk_live_4eC39Hq: x\n      sk_live_4eC39Hq: y"}, []string{
			"11: profiles.a.pool.?: is not a field here; the fields are check_every, deadline, disclosed, env, keys, max_holders, max_refusals, name, probe, rest, reuse, scopes, select, share_percent, stores, vendor",
			"12: profiles.a.pool.?: stands twice, first in line 11"}},
		"wrong types": {edits{
			"- callers: [bob]", "- callers: bob", "default: 10m", "default: 600", "max: 1h", "max: 1d", "name: p", "name: [p]",
			"pool:\n", "pool:\n      scopes: [1, true, {}]\n", "scopes: [s, t]", "env: 7",
			"seal:", "listen: 8080\nlog: debug\ndatabse: 1\nseal:",
		}, []string{
			"2: listen: is not text: put it in quotes",
			"3: log: is not a section of fields",
			"4: databse: is not a field here; the fields are audit, concurrency, database, limits, listen, log, profiles, seal, shutdown_timeout, tls, upstream_timeout",
			"9: profiles.a.ttl.default: is not a duration such as 30s, 15m or 12h",
			"9: profiles.a.ttl.max: is not a duration such as 30s, 15m or 12h",
			"11: profiles.a.allow[0].callers: is not a list",
			"13: profiles.a.pool.scopes[0]: is not text: put it in quotes",
			"13: profiles.a.pool.scopes[1]: is not text: put it in quotes",
			"13: profiles.a.pool.scopes[2]: is not text",
			"14: profiles.a.pool.name: is not text",
			"15: profiles.a.pool.env: is not text: put it in quotes",
		}},
		"numbers and truths": {edits{
			`url: "env:DB"`, `url: "env:DB", max_connections: many`, "provider: pool", "provider: aws",
			"    pool:\n", strings.Replace(awsSection, "region", "source_identity: 'yes'\n      region", 1) + "    pool:\n",
		}, []string{
			"1: database.max_connections: is not a whole number that fits",
			"11: profiles.a.aws.source_identity: is neither true nor false",
			"14: profiles.a.pool: does not belong here: this profile's provider is aws",
		}},
		"numbers that do not fit": {edits{`url: "env:DB"`, `url: "env:DB", max_connections: 18446744073709551615`}, []string{
			"1: database.max_connections: is not a whole number that fits"}},
		"durations of other kinds": {edits{"{default: 10m, max: 1h}", "{min: 0, default: 1.5, max: [1h]}", "callers: [bob]", `callers: [bob]
        max_ttl: "15"`}, []string{
			"6: profiles.a.ttl.default: is not a duration such as 30s, 15m or 12h",
			"6: profiles.a.ttl.max: is not a duration such as 30s, 15m or 12h",
			"6: profiles.a.ttl.min: is not a duration such as 30s, 15m or 12h",
			"9: profiles.a.allow[0].max_ttl: is not a duration such as 30s, 15m or 12h"}},
		"no values": {edits{"name: p", "name:", "callers: [bob]", "callers: [~]", "seal:", "tls:\nseal:"}, []string{
			"2: tls: has no value: give it one, or leave the whole field out",
			"9: profiles.a.allow[0].callers[0]: has no value: give it one, or leave the whole field out",
			"11: profiles.a.pool.name: has no value: give it one, or leave the whole field out"}},
		"tags of other types": {edits{"name: p", "name: !!binary cA==", "callers: [bob]", "callers: !!set {bob}", "disclosed: accept", "disclosed: !x accept"}, []string{
			"8: profiles.a.allow[0].callers: is not a list",
			"10: profiles.a.pool.name: is not text: put it in quotes",
			"12: profiles.a.pool.disclosed: is not text: put it in quotes"}},
		"keys twice": {edits{"name: p", "name: p\n      name: q", "seal:", "seal: {}\nseal:", "  a:\n", "  a: {}\n  a:\n", "max: 1h", "max: 1h, max: 2h"}, []string{
			"2: seal.keyset: is required: a reference, env:NAME or file:/path",
			"3: seal: stands twice, first in line 2",
			"5: profiles.a.allow: has no rule: nobody may ask",
			"5: profiles.a.provider: is required; the providers are aws, gcp, pool, stripe",
			"5: profiles.a.ttl.default: is required",
			"5: profiles.a.ttl.max: is required",
			"6: profiles.a: stands twice, first in line 5",
		}},
		"scopes and keys twice": {edits{"[s, t]", "[s, t, s]", `        - {name: k, value: "env:K"}`, `        - {name: k, value: "env:K"}
        - {name: k, value: "env:K"}`, "callers: [bob]", "callers: [bob, bob]\n        scopes: [t, t]"}, []string{
			"8: profiles.a.allow[0].callers[1]: stands twice",
			"9: profiles.a.allow[0].scopes[1]: stands twice",
			"12: profiles.a.pool.scopes[2]: stands twice",
			"16: profiles.a.pool.keys[1].name: stands twice",
			"16: profiles.a.pool.keys[1].value: is another key's too: one key has one holder"}},
		"a scope twice in aws": {edits{"provider: pool", "provider: aws", "    pool:\n      name: p\n      scopes: [s, t]\n      disclosed: accept\n      keys:\n        - {name: k, value: \"env:K\"}\n",
			strings.Replace(awsSection, "}]}}", "}]}, s: {}}", 1)}, []string{
			"12: profiles.a.aws.scopes.s: stands twice, first in line 12"}},
		"keys that are no text": {edits{"name: p", "1: x\n      ? [a]\n      : b\n      name: p"}, []string{
			"10: profiles.a.pool: has a key that is not text: put it in quotes",
			"11: profiles.a.pool: has a key that is not text: put it in quotes"}},
		"unknown provider": {edits{"provider: pool", "provider: vault"}, []string{
			"5: profiles.a.provider: is unknown; the providers are aws, gcp, pool, stripe"}},
		"no provider": {edits{"    provider: pool\n", ""}, []string{
			"4: profiles.a.provider: is required; the providers are aws, gcp, pool, stripe"}},
		"section missing, foreign one present": {edits{"provider: pool", "provider: aws"}, []string{
			"4: profiles.a.aws: is required: it is the section of this profile's provider",
			"9: profiles.a.pool: does not belong here: this profile's provider is aws"}},
		"foreign section beside a faulty own one": {edits{"    pool:\n", awsSection + "    pool:\n", "disclosed: accept", "disclosed: yes"}, []string{
			"9: profiles.a.aws: does not belong here: this profile's provider is pool",
			"16: profiles.a.pool.disclosed: can only say accept"}},
		"section of another kind": {edits{"    pool:\n", "    pool: here\n    unused:\n"}, []string{
			"9: profiles.a.pool: is not a section of fields",
			"10: profiles.a.unused: is not a field here; the fields are allow, aws, description, env, gcp, max_lifetime, overlap, pool, provider, stripe, ticket, ttl"}},
		"no rules":    {edits{"    allow:\n      - callers: [bob]\n", ""}, []string{"4: profiles.a.allow: has no rule: nobody may ask"}},
		"empty rules": {edits{"allow:\n      - callers: [bob]", "allow: []"}, []string{"7: profiles.a.allow: has no rule: nobody may ask"}},
		"rules that say nothing": {edits{"- callers: [bob]", "- callers: []\n        tasks: []\n        agents: []\n        scopes: []\n      - {}"}, []string{
			"8: profiles.a.allow[0].callers: names nobody: say who may ask",
			"9: profiles.a.allow[0].tasks: is empty: leave it out if any will do",
			"10: profiles.a.allow[0].agents: is empty: leave it out if any will do",
			"11: profiles.a.allow[0].scopes: is empty: leave it out if any will do",
			"12: profiles.a.allow[1].callers: names nobody: say who may ask"}},
		"patterns": {edits{"[bob]", `["*", "a*b", "**", "", "b/c", "ok-*"]
        tasks: ["{{x}}"]
        agents: ["a b*"]`}, []string{
			"8: profiles.a.allow[0].callers[1]: is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots",
			"8: profiles.a.allow[0].callers[2]: is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots",
			"8: profiles.a.allow[0].callers[3]: is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots",
			"8: profiles.a.allow[0].callers[4]: is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots",
			"9: profiles.a.allow[0].tasks[0]: is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots",
			"10: profiles.a.allow[0].agents[0]: is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots"}},
		"scope of no profile": {edits{"callers: [bob]", "callers: [bob]\n        scopes: [s, u]"}, []string{
			"9: profiles.a.allow[0].scopes[1]: is not a scope of this profile"}},
		"names of scopes": {edits{"[s, t]", `[s, "t t"]`}, []string{
			"11: profiles.a.pool.scopes: has a name that is not 1-128 printable characters without a space"}},
		"names of profiles": {edits{"  a:", "  \"a\\nb/c\":"}, []string{
			"4: profiles.a?b/c: has a name that is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"}},
		"ttl order": {edits{"{default: 10m, max: 1h}", "{default: 10m, min: 20m, max: 5m}"}, []string{
			"6: profiles.a.ttl.max: is shorter than the default",
			"6: profiles.a.ttl.min: is longer than the default"}},
		"ttl min and max alone": {edits{"{default: 10m, max: 1h}", "{min: 20m, max: 5m}"}, []string{
			"6: profiles.a.ttl.default: is required",
			"6: profiles.a.ttl.max: is shorter than the min"}},
		"ttl missing": {edits{"    ttl: {default: 10m, max: 1h}\n", ""}, []string{
			"4: profiles.a.ttl.default: is required", "4: profiles.a.ttl.max: is required"}},
		"ttl not positive": {edits{"{default: 10m, max: 1h}", "{default: 0s, min: -1s, max: 0h}", "callers: [bob]", "callers: [bob]\n        max_ttl: 0s"}, []string{
			"6: profiles.a.ttl.default: is not longer than 0s", "6: profiles.a.ttl.max: is not longer than 0s",
			"6: profiles.a.ttl.min: is not longer than 0s", "9: profiles.a.allow[0].max_ttl: is not longer than 0s"}},
		"max_ttl": {edits{"{default", "{min: 5m, default", "- callers: [bob]", "- {callers: [bob], max_ttl: 2h}\n      - {callers: [eve], max_ttl: 1m}"}, []string{
			"8: profiles.a.allow[0].max_ttl: is longer than the profile's max",
			"9: profiles.a.allow[1].max_ttl: is shorter than the profile's min: nothing could be asked for"}},
		"the server": {edits{"seal: {keyset: \"env:KEYSET\"}", "seal: {keyset: KEYSET}\nlisten: example.org:80\nupstream_timeout: 61s\nshutdown_timeout: 500ms\nlog: {level: loud}\n" +
			"tls:\n  key_file: key.pem\n  client_ca_file: ''", `{url: "env:DB"}`, `{url: "postgres://u:pw@h/d", max_connections: 0}`}, []string{
			"1: database.max_connections: is not between 1 and 1000",
			"1: database.url: must be a reference, env:NAME or file:/path, and never the secret itself",
			"2: seal.keyset: must be a reference, env:NAME or file:/path, and never the secret itself",
			"3: listen: is not an IP address and a port, such as 127.0.0.1:8080",
			"4: upstream_timeout: is not between 1s and 1m",
			"5: shutdown_timeout: is not between 1s and 10m",
			"6: log.level: is not debug, info, warn or error",
			"7: tls.cert_file: is required",
			"8: tls.key_file: is not an absolute path of a file",
			"9: tls.client_ca_file: is not an absolute path of a file"}},
		"what may be open": {edits{"seal: {keyset: \"env:KEYSET\"}", "seal: {keyset: \"env:KEYSET\"}\nconcurrency:\n  watches: {per_token: 0}\n  searches: {per_caller: 3}\n  exports: {total: 3}\n" +
			"  live_pages: {per_token: 1, per_caller: 1, total: 1}\n  downloads: {total: 1}", `url: "env:DB"`, `url: "env:DB", read_connections: 1001`}, []string{
			"1: database.read_connections: is not between 1 and 1000",
			"4: concurrency.watches.per_token: is not 1 or more",
			"5: concurrency.searches: does not have per_token ≤ per_caller ≤ total; what is left out has its default",
			"6: concurrency.exports: does not have per_token ≤ per_caller ≤ total; what is left out has its default",
			"8: concurrency.downloads: is not a field here; the fields are authentications, exports, live_pages, requests, searches, watches"}},
		"nothing that is required": {edits{small, "listen: 127.0.0.1:1"}, []string{
			"1: database.url: is required: a reference, env:NAME or file:/path",
			"1: profiles: offers nothing: name at least one profile",
			"1: seal.keyset: is required: a reference, env:NAME or file:/path"}},
		"one pool, two lists": {edits{small, small + strings.Replace(second, "name: q", "name: p", 1)}, []string{
			"23: profiles.b.pool.keys: differ from those of profile a, whose pool has the same name"}},
		"one pool, two shares": {edits{small, small + strings.NewReplacer("name: q", "name: p\n      share_percent: 50", "env:L", "env:K").Replace(second)}, []string{
			"20: profiles.b.pool: has another share_percent or probe than profile a, whose pool has the same name"}},
		"no share": {edits{"disclosed: accept", "disclosed: accept\n      share_percent: 101\n      probe: {url: \"ftp://x\", header: \"a b\"}"}, []string{
			"13: profiles.a.pool.share_percent: is not between 1 and 100",
			"14: profiles.a.pool.probe.header: is not the name of a header",
			"14: profiles.a.pool.probe.url: is not https; only an address of the loopback interface may do without"}},
		"one role, two ways to revoke": {edits{"provider: pool", "provider: aws", "    pool:\n      name: p\n      scopes: [s, t]\n      disclosed: accept\n      keys:\n        - {name: k, value: \"env:K\"}\n",
			awsSection + "  b:\n    provider: aws\n    ttl: {default: 1m, max: 1h}\n    allow:\n      - callers: [a]\n" + awsSection + "      revocation: {mode: none}\n"}, []string{
			"22: profiles.b.aws.revocation: differs from that of profile a, which has the same role"}},
		"one spill policy, two roles": {edits{"provider: pool", "provider: aws", "    pool:\n      name: p\n      scopes: [s, t]\n      disclosed: accept\n      keys:\n        - {name: k, value: \"env:K\"}\n",
			strings.Replace(awsSection, "role/x", "role/y", 1) + "      revocation: {spill_policies: [\"arn:aws:iam::123456789012:policy/s\"]}\n" +
				"  b:\n    provider: aws\n    ttl: {default: 1m, max: 1h}\n    allow:\n      - callers: [a]\n" + awsSection +
				"      revocation: {spill_policies: [\"arn:aws:iam::123456789012:policy/s\"]}\n"}, []string{
			"23: profiles.b.aws.revocation.spill_policies[0]: is another role's too: each would overwrite the other's denials"}},
		"one key, two pools": {edits{small, small + strings.Replace(second, "env:L", "file:/x//k", 1), "env:K\"}", "file:/x/k\"}"}, []string{
			"24: profiles.b.pool.keys[0].value: is a key of another pool too, in profile a: one key has one holder"}},
		"two documents": {edits{small, small + "---\nx: 1\n", "max: 1h", "max: 1m"}, []string{
			"6: profiles.a.ttl.max: is shorter than the default",
			"15: a second document begins here: a file holds one"}},
		"two documents, one of them no YAML": {edits{small, small + "---\nx: [\n"}, []string{
			"17: is not YAML: while parsing a flow node that begins in line 17, did not find expected node content"}},
		"empty":          {edits{small, ""}, []string{"1: is empty"}},
		"only a comment": {edits{small, "# soon\n"}, []string{"1: is empty"}},
		"null":           {edits{small, "~"}, []string{"1: has no value: give it one, or leave the whole field out"}},
		"a list":         {edits{small, "\n- a\n"}, []string{"2: is not a section of fields"}},
		"no YAML": {edits{"max: 1h}", "max: 1h"}, []string{
			"7: is not YAML: while parsing a flow mapping that begins in line 6, did not find expected ',' or '}'"}},
		"a tab": {edits{"      name: p", "\tname: p"}, []string{
			"10: is not YAML: while scanning for the next token that begins in line 10, found character that cannot start any token"}},
		"an open quote": {edits{"name: p", "name: 'p"}, []string{
			"15: is not YAML: while scanning a quoted scalar that begins in line 10, found unexpected end of stream"}},
		"bytes that are no text": {edits{"name: p", "name: \xff"}, []string{"10: is not YAML: there are bytes here that are no text in UTF-8"}},
		"an alias of nothing":    {edits{"name: p", "name: *p"}, []string{"10: is not YAML: an alias names no anchor above it"}},
		"merges": {edits{"name: p", "<<: p\n      name: p", "ttl: {", "ttl: {<<: [[]], <<: {min: 1m, min: 2m}, "}, []string{
			"6: profiles.a.ttl: merges with << what is not a section",
			"6: profiles.a.ttl.min: stands twice, first in line 6",
			"10: profiles.a.pool: merges with << what is not a section"}},
		"a merge with itself": {edits{"pool:\n", "pool: &p\n      <<: *p\n"}, []string{
			"10: comes to more than 100000 values with its aliases"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := small
			for i := 0; i < len(c.edits); i += 2 {
				if !strings.Contains(text, c.edits[i]) {
					t.Fatalf("small has no %q", c.edits[i])
				}
				text = strings.Replace(text, c.edits[i], c.edits[i+1], 1)
			}
			f, err := config.Parse("taskpass.yaml", []byte(text))
			if f != nil {
				t.Error("a faulty file was returned")
			}
			if diff := cmp.Diff(c.want, faultLines(t, err)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// faultLines are an error's lines without the file's name; they say the same as its faults do one by one.
func faultLines(t *testing.T, err error) []string {
	t.Helper()
	faults, ok := errors.AsType[config.Faults](err)
	if !ok {
		t.Fatalf("got %T: %v", err, err)
	}
	var each []string
	for _, f := range faults {
		path := f.Path
		if path != "" {
			path += ": "
		}
		each = append(each, fmt.Sprintf("taskpass.yaml:%d: %s%s", f.Line, path, f.Reason))
	}
	if diff := cmp.Diff(strings.Join(each, "\n"), err.Error()); diff != "" {
		t.Error(diff)
	}
	for i := range each {
		each[i] = strings.TrimPrefix(each[i], "taskpass.yaml:")
	}
	return each
}

// A few lines of aliases can stand for more values than there is memory.
func TestBombsAreRefusedQuickly(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("*a, ", 10_000)
	wide := strings.Replace(small, "allow:\n      - callers: [bob]", "allow: [&r {callers: &a [bob]}, "+strings.Repeat("*r, ", 50_000)+"]", 1)
	deep := strings.Replace(small, "allow:\n      - callers: [bob]",
		"allow: [&r {callers: [&a bob, "+many+"], tasks: [*a, "+many+"]}, "+strings.Repeat("*r, ", 10_000)+"]", 1)
	merge := strings.Replace(small, "ttl: {", "ttl: {<<: [&a {min: 1s}, "+many+"], ", 1)
	for i := range 9 {
		merge = strings.Replace(merge, "ttl: {<<: [", fmt.Sprintf("ttl: {<<: [&b%d {<<: [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]}, ", i), 1)
	}
	nested := small + "x: " + strings.Repeat("[", 100_000)
	for name, text := range map[string]string{"wide": wide, "deep": deep, "merge": merge, "nested": nested} {
		begun := time.Now()
		_, err := config.Parse("taskpass.yaml", []byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) > 1000 {
			t.Errorf("%s: %.200s", name, err)
		}
		if took := time.Since(begun); took > 2*time.Minute { // milliseconds on an idle machine, but hours if it expanded them
			t.Errorf("%s: took %s", name, took)
		}
	}
}
