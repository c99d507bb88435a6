package sqlreqconnect_test

import (
	"connectrpc.com/connect"

	sqlreqconnect "github.com/sqlreq/sqlreq/adapters/connect"
)

// The line of sqlreq's README.md: an option of each generated handler.
func ExampleInterceptor() {
	_ = []connect.HandlerOption{connect.WithInterceptors(sqlreqconnect.Interceptor())}
}
