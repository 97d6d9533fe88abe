package gcp

import (
	"encoding/json"
	"fmt"
	"net/http"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// refuse is a gRPC status with details, as Google's services answer.
func refuse(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(codes.Internal, "the reply could not be encoded")
	}
	return st.Err()
}

// permissionDenied is what IAM answers to a caller that lacks a permission, and to one
// that asks for what does not exist under a wildcard project.
func permissionDenied(permission, resource string) error {
	return refuse(codes.PermissionDenied,
		fmt.Sprintf("Permission '%s' denied on resource (or it may not exist).", permission),
		&errdetails.ErrorInfo{
			Reason: "IAM_PERMISSION_DENIED", Domain: "iam.googleapis.com",
			Metadata: map[string]string{"permission": permission, "resource": resource},
		})
}

// accountDisabled uses the reason that google.api.ErrorReason has for it.
func accountDisabled() error {
	return refuse(codes.PermissionDenied, "The service account is disabled.",
		&errdetails.ErrorInfo{Reason: "ACCOUNT_STATE_INVALID", Domain: "iam.googleapis.com"})
}

func invalidArgument(field, message string) error {
	return refuse(codes.InvalidArgument, "Request contains an invalid argument.",
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: message}}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// writeJSONError is the error form of the Cloud Storage JSON API.
func writeJSONError(w http.ResponseWriter, code int, reason, message string) {
	type item struct {
		Message string `json:"message"`
		Domain  string `json:"domain"`
		Reason  string `json:"reason"`
	}
	writeJSON(w, code, map[string]any{"error": map[string]any{
		"code": code, "message": message, "errors": []item{{message, "global", reason}},
	}})
}

// writeOAuthError is the error form of RFC 6749, section 5.2.
func writeOAuthError(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}
