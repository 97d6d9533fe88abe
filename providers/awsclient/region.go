package awsclient

import (
	"context"
	"regexp"

	"github.com/aws/aws-sdk-go-v2/service/iam"
	smithyauth "github.com/aws/smithy-go/auth"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

var regionForm = regexp.MustCompile(`^[a-z]{2,10}(-[a-z0-9]+)+-[0-9]{1,2}$`)

// ValidRegion tells whether a text has the form of a region's name, such as eu-west-1. Whether there is one is AWS's to say.
func ValidRegion(region string) bool { return regionForm.MatchString(region) }

// home is where a partition's IAM is. There is one for each partition, so it tells partitions apart, and it is signed for
// the partition's first region. All of it comes from the SDK's own resolver.
type home struct{ endpoint, region string }

func homeOf(region string) home {
	e, err := iam.NewDefaultEndpointResolverV2().ResolveEndpoint(context.Background(), iam.EndpointParameters{Region: &region})
	if err != nil {
		return home{}
	}
	h := home{endpoint: e.URI.String()}
	options, _ := smithyauth.GetAuthOptions(&e.Properties)
	for _, o := range options {
		if region, ok := smithyhttp.GetSigV4SigningRegion(&o.SignerProperties); ok {
			h.region = region
		}
	}
	return h
}

// homeOfPartition asks for a partition's pseudo-region. What the SDK does not know it takes for the partition aws.
func homeOfPartition(partition string) (h home, known bool) {
	h = homeOf(partition + "-global")
	return h, h.region != "" && (partition == "aws" || h != homeOf("aws-global"))
}

// DefaultRegion is the first region of a partition; empty if the SDK does not know one.
func DefaultRegion(partition string) string {
	if h, known := homeOfPartition(partition); known {
		return h.region
	}
	return ""
}

// OtherPartition tells whether a region is not of the named partition, as far as the SDK knows that partition.
func OtherPartition(region, partition string) bool {
	h, known := homeOfPartition(partition)
	return known && homeOf(region) != h
}
