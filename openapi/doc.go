// Package openapi serves the HTTP contract. openapi.yaml is the contract itself: requests are validated against it, and
// types, routes and the client (package client) are generated from it.
//
// It decides how the broker's nouns and errors look on the wire, and nothing else: no rule of the domain stands here.
// No answer and no log line repeats what a client submitted in a field that failed; it might be a secret.
package openapi

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config server.cfg.yaml openapi.yaml
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config client.cfg.yaml openapi.yaml
