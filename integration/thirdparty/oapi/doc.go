// Package oapi is what oapi-codegen makes of notes.yaml, for the table of libraries.
package oapi

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.7.0 -package oapi -generate std-http,strict-server,types -o notes.gen.go notes.yaml
