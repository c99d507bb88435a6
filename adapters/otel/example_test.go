package sqlreqotel_test

import (
	"github.com/sqlreq/sqlreq"
	sqlreqotel "github.com/sqlreq/sqlreq/adapters/otel"
)

// The global providers of traces and metrics.
func ExampleObserve() {
	reg := new(sqlreq.Registry)
	reg.Observe = sqlreqotel.Observe(nil, nil) // the global providers
}
