package httpapi

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// deadlineConn is a connection on which it costs little to set deadlines. net/http and we set
// about ten of them for each request, nearly all of which are taken back before they come, and
// each would be a timer of the runtime. A later deadline is only remembered here while an
// earlier one is armed; when that one comes, the wait goes on until the later one.
type deadlineConn struct {
	net.Conn
	read, write deadline
}

func newDeadlineConn(c net.Conn) *deadlineConn {
	return &deadlineConn{Conn: c, read: deadline{arm: c.SetReadDeadline}, write: deadline{arm: c.SetWriteDeadline}}
}

// Read waits up to the deadline that was set last, also where that was during the wait.
func (c *deadlineConn) Read(b []byte) (int, error) {
	c.read.begin()
	for {
		n, err := c.Conn.Read(b)
		if err == nil || n > 0 || !c.read.early(err) {
			return n, err
		}
	}
}

// Write is to writing what Read is to reading.
func (c *deadlineConn) Write(b []byte) (int, error) {
	c.write.begin()
	written := 0
	for {
		n, err := c.Conn.Write(b[written:])
		written += n
		if err == nil || !c.write.early(err) {
			return written, err
		}
	}
}

// SetReadDeadline sets until when reads wait; zero is for ever.
func (c *deadlineConn) SetReadDeadline(t time.Time) error { return c.read.set(t) }

// SetWriteDeadline sets until when writes wait; zero is for ever.
func (c *deadlineConn) SetWriteDeadline(t time.Time) error { return c.write.set(t) }

// SetDeadline sets both.
func (c *deadlineConn) SetDeadline(t time.Time) error {
	return errors.Join(c.read.set(t), c.write.set(t))
}

// firstLook is when a wait looks at its deadline for the first time, if that is later. It is
// shorter than the usual deadlines, so that those that follow need not be armed.
const firstLook = 5 * time.Second

// deadline is one of the two of a connection. What is armed is never later than what is wanted,
// unless it is spent; zero is later than everything.
type deadline struct {
	arm func(time.Time) error // of the connection

	mu            sync.Mutex
	wanted, armed time.Time
	spent         bool // what is armed has ended a wait, and no other wait has begun since
}

// set makes t the deadline. One that net/http sets into the past, to end a wait, does so at once.
func (d *deadline) set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = t
	if d.spent || t.IsZero() || !d.armed.IsZero() && !t.Before(d.armed) {
		return nil
	}
	return d.rearm(t)
}

func (d *deadline) rearm(t time.Time) error {
	d.armed, d.spent = t, false
	return d.arm(t)
}

// begin is called before a wait.
func (d *deadline) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.spent {
		return
	}
	t := time.Now().Add(firstLook)
	if !d.wanted.IsZero() && d.wanted.Before(t) {
		t = d.wanted
	}
	_ = d.rearm(t) // where it fails, so does the wait: the connection is closed
}

// early tells whether the error that ended a wait is a deadline that came before the one that is
// wanted. That one is armed then.
func (d *deadline) early(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.wanted.IsZero() && !d.wanted.After(time.Now()) {
		d.spent = true
		return false
	}
	return d.rearm(d.wanted) == nil
}
