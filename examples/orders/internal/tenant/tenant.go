// Package tenant says for whom a context works. It is all that the layers share about tenants: what a request's path
// named goes in at the edge, and comes out right after BEGIN.
package tenant

import (
	"context"
	"slices"
)

// All are the tenants of this service. A larger one reads them from a database, by another key of the registry.
var All = []string{"acme", "globex"}

// Known says whether there is such a tenant.
func Known(name string) bool { return slices.Contains(All, name) }

type (
	nameKey  struct{}
	everyKey struct{}
)

// With returns a context that works for one tenant.
func With(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, nameKey{}, name)
}

// Every returns a context that works for all tenants at once: the admin's.
func Every(ctx context.Context) context.Context {
	return context.WithValue(ctx, everyKey{}, true)
}

// Of returns the tenant that ctx works for, "" if there is none: no row has that tenant.
func Of(ctx context.Context) string {
	name, _ := ctx.Value(nameKey{}).(string)
	return name
}

// IsEvery says whether ctx works for all tenants.
func IsEvery(ctx context.Context) bool { return ctx.Value(everyKey{}) != nil }
