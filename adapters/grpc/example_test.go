package sqlreqgrpc_test

import (
	"google.golang.org/grpc"

	"github.com/sqlreq/sqlreq"
	sqlreqgrpc "github.com/sqlreq/sqlreq/adapters/grpc"
)

// The line of sqlreq's README.md.
func ExampleUnaryServerInterceptor() {
	reg := new(sqlreq.Registry)
	_ = grpc.NewServer(grpc.UnaryInterceptor(sqlreqgrpc.UnaryServerInterceptor(reg)))
}
