// Package oapi is what oapi-codegen makes of notes.yaml:
//
//	go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.7.0 -generate types,std-http-server,strict-server -package oapi -o notes.gen.go notes.yaml
package oapi
