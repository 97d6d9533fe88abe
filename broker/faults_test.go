package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

// Where secrets are sent: not in the clear, but on this machine; and no address holds one.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{ // what the refusal says
		"https://api.example.com": "", "https://api.example.com:8443/v1/": "", "https://192.0.2.1": "",
		"http://localhost:9": "", "http://127.0.0.1:9/x": "", "http://127.1.2.3": "", "http://[::1]:9": "",

		"": "a host", "api.example.com": "a host", "/v1": "a host", "https:///v1": "a host", "https:api.example.com": "a host", "https://%zz": "a host", "mailto:a@b": "a host",
		"http://api.example.com": "not https", "http://192.0.2.1": "not https", "http://127.0.0.1.example.com": "not https",
		"http://localhost.example.com": "not https", "http://0.0.0.0": "not https", "ftp://localhost": "not https", "http://[::ffff:192.0.2.1]": "not https",
		"https://C4n4ry@example.com": "a user", "https://u:C4n4ry@localhost": "a user", "https://example.com/#C4n4ry": "a fragment",
		"https://example.com/?key=C4n4ry": "more than", "https://example.com?": "more than",
	} {
		var f broker.Faults
		f.Endpoint("at", text)
		if got := fmt.Sprint(f); len(f) > 1 || (want == "") != (len(f) == 0) || !strings.Contains(got, want) || strings.Contains(got, "C4n4ry") {
			t.Errorf("%q: %s, want %q", text, got, want)
		}
		var asURL broker.Faults
		if u := asURL.URL("at", text); (u == nil) != (want == "a host") {
			t.Errorf("%q: the URL is %v", text, u)
		}
		if want == "more than" { // a hook may have a query
			f = nil
		}
		if !slices.Equal(f, asURL) {
			t.Errorf("%q: %v as a URL, %v as an endpoint", text, asURL, f)
		}
	}
}

func TestFaultsOfSections(t *testing.T) {
	t.Parallel()
	var inner, f broker.Faults
	inner.Add("keys[0]", "is %d", 7)
	inner.Add("", "names none")
	inner.Ref("value", "sk_C4n4ry")
	inner.Ref("other", "env:A")
	f.Below("pool", inner)
	if want := "[{pool.keys[0] is 7} {pool names none} {pool.value must be a reference, env:NAME or file:/path, and never the secret itself}]"; fmt.Sprint(f) != want {
		t.Errorf("got  %v\nwant %s", f, want)
	}
}
