package sqlreqpgx

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
)

// slowConn is a connection whose Close takes its time.
type slowConn struct {
	net.Conn
	closing, release chan struct{}
}

func (c *slowConn) Close() error {
	close(c.closing)
	<-c.release
	return nil
}

// What a context's end does to the connection is over when the end of what was open returns: the
// pool may give the connection to somebody else then.
func TestEndUseWaitsForKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		slow := &slowConn{closing: make(chan struct{}), release: make(chan struct{})}
		c := &conn{net: slow}
		u := &use{conn: c, finish: func() error {
			cancel()
			<-slow.closing
			return nil
		}}
		u.over.Store(true) // no connection of pgx to ask
		c.use.Store(u)
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			_ = c.endUse(ctx)
		}()
		synctest.Wait()
		select {
		case <-returned:
			t.Error("endUse has returned while the connection is being closed")
		default:
		}
		close(slow.release)
		<-returned
	})
}
