package sqlreqgrpc

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// transport keeps the header and the trailer of an attempt.
type transport struct {
	grpc.ServerTransportStream

	mu      sync.Mutex // guards what follows
	header  metadata.MD
	trailer metadata.MD
	sent    bool // SendHeader was called
}

// newTransport returns nil where ctx is not that of a call.
func newTransport(ctx context.Context) *transport {
	s := grpc.ServerTransportStreamFromContext(ctx)
	if s == nil {
		return nil
	}
	return &transport{ServerTransportStream: s}
}

var errSent = status.Error(codes.Internal, "sqlreqgrpc: SendHeader was called before")

// SetHeader adds to the header.
func (t *transport) SetHeader(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sent {
		return errSent
	}
	t.header = metadata.Join(t.header, md)
	return nil
}

// SendHeader adds to the header for the last time.
func (t *transport) SendHeader(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sent {
		return errSent
	}
	t.header, t.sent = metadata.Join(t.header, md), true
	return nil
}

// SetTrailer adds to the trailer.
func (t *transport) SetTrailer(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trailer = metadata.Join(t.trailer, md)
	return nil
}

// send hands both to gRPC.
func (t *transport) send() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	header, trailer := t.header, t.trailer
	t.mu.Unlock()
	if len(header) > 0 {
		if err := t.ServerTransportStream.SetHeader(header); err != nil {
			return err
		}
	}
	if len(trailer) == 0 {
		return nil
	}
	return t.ServerTransportStream.SetTrailer(trailer)
}
