package awsclient_test

import (
	"testing"

	"github.com/taskpass/taskpass/providers/awsclient"
)

func TestDefaultRegion(t *testing.T) {
	t.Parallel()
	for partition, want := range map[string]string{
		"aws": "us-east-1", "aws-cn": "cn-north-1", "aws-us-gov": "us-gov-west-1", "aws-eusc": "", "aws-of-2040": "", "": "",
	} {
		if got := awsclient.DefaultRegion(partition); got != want {
			t.Errorf("%q: %q, want %q", partition, got, want)
		}
	}
}

func TestOtherPartition(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		region, partition string
		want              bool
	}{
		{"eu-west-1", "aws", false}, {"us-gov-east-1", "aws-us-gov", false}, {"cn-northwest-1", "aws-cn", false},
		{"eusc-de-east-1", "aws-eusc", false}, {"xx-new-1", "aws-of-2040", false}, {"xx-new-1", "aws", false}, // not known to the SDK yet
		{"us-gov-west-1", "aws", true}, {"cn-north-1", "aws", true}, {"eusc-de-east-1", "aws", true}, {"eu-west-1", "aws-cn", true},
		{"us-east-1", "aws-us-gov", true},
	} {
		if got := awsclient.OtherPartition(c.region, c.partition); got != c.want {
			t.Errorf("%s in %s: %t", c.region, c.partition, got)
		}
	}
}
