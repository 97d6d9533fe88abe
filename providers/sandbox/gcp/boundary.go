package gcp

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

const maxRules = 10 // of a Credential Access Boundary

// permissions are what the predefined roles of Cloud Storage allow on objects.
var permissions = map[string][]string{
	"roles/storage.objectViewer":  {"storage.objects.get", "storage.objects.list"},
	"roles/storage.objectCreator": {"storage.objects.create"},
	"roles/storage.objectUser":    {"storage.objects.get", "storage.objects.list", "storage.objects.create", "storage.objects.delete"},
	"roles/storage.objectAdmin":   {"storage.objects.get", "storage.objects.list", "storage.objects.create", "storage.objects.delete"},
}

type ruleJSON struct {
	AvailableResource    string   `json:"availableResource"`
	AvailablePermissions []string `json:"availablePermissions"`
	Condition            *struct {
		Expression string `json:"expression"`
	} `json:"availabilityCondition"`
}

// boundary is a compiled Credential Access Boundary.
type boundary struct{ rules []rule }

type rule struct {
	bucket    string
	roles     []string
	condition cel.Program // nil: always
}

// environment knows what conditions of an access boundary may name: resource.name, .type
// and .service, and api.getAttribute(name, default).
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("resource", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("api", cel.MapType(cel.StringType, cel.StringType)),
		cel.Function("getAttribute", cel.MemberOverload("api_get_attribute",
			[]*cel.Type{cel.MapType(cel.StringType, cel.StringType), cel.StringType, cel.StringType}, cel.StringType,
			cel.FunctionBinding(getAttribute))))
})

func getAttribute(args ...ref.Val) ref.Val {
	if attributes, ok := args[0].Value().(map[string]string); ok {
		if name, ok := args[1].Value().(string); ok {
			if value, ok := attributes[name]; ok {
				return types.String(value)
			}
		}
	}
	return args[2]
}

func newBoundary(list []ruleJSON) (*boundary, error) {
	if len(list) == 0 || len(list) > maxRules {
		return nil, fmt.Errorf("%d rules", len(list))
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	b := &boundary{}
	for _, in := range list {
		r := rule{}
		var ok bool
		if r.bucket, ok = strings.CutPrefix(in.AvailableResource, "//storage.googleapis.com/projects/_/buckets/"); !ok || r.bucket == "" || strings.Contains(r.bucket, "/") {
			return nil, fmt.Errorf("availableResource")
		}
		if len(in.AvailablePermissions) == 0 {
			return nil, fmt.Errorf("availablePermissions")
		}
		for _, p := range in.AvailablePermissions {
			role, ok := strings.CutPrefix(p, "inRole:")
			if !ok || permissions[role] == nil {
				return nil, fmt.Errorf("availablePermissions")
			}
			r.roles = append(r.roles, role)
		}
		if in.Condition != nil {
			ast, issues := env.Compile(in.Condition.Expression)
			if issues.Err() != nil || ast.OutputType() != cel.BoolType {
				return nil, fmt.Errorf("availabilityCondition")
			}
			if r.condition, err = env.Program(ast, cel.CostLimit(100_000)); err != nil {
				return nil, err
			}
		}
		b.rules = append(b.rules, r)
	}
	return b, nil
}

// allows tells whether a rule makes a permission available. What cannot be evaluated
// makes nothing available.
func (b *boundary) allows(permission, bucket, object string, attributes map[string]string) bool {
	name, kind := "projects/_/buckets/"+bucket, "storage.googleapis.com/Bucket"
	if object != "" {
		name, kind = name+"/objects/"+object, "storage.googleapis.com/Object"
	}
	input := map[string]any{
		"resource": map[string]string{"name": name, "type": kind, "service": "storage.googleapis.com"},
		"api":      attributes,
	}
	return slices.ContainsFunc(b.rules, func(r rule) bool {
		if r.bucket != bucket || !holds(r.roles, permission) {
			return false
		}
		if r.condition == nil {
			return true
		}
		out, _, err := r.condition.Eval(input)
		return err == nil && out.Value() == true
	})
}

func holds(roles []string, permission string) bool {
	return slices.ContainsFunc(roles, func(role string) bool { return slices.Contains(permissions[role], permission) })
}
