package deliver

import "time"

const (
	// An endpoint is down after so many failures in a row, of at least two records: one record
	// alone says nothing about the endpoint.
	downAfter = 5
)

// circuit knows whether the endpoint is down. Then it is probed with one record at a time; when one
// succeeds, what may be in flight begins with a pair and doubles with each success.
type circuit struct {
	down    bool
	since   uint64    // of the attempt that ended when it went down
	probeAt time.Time // of the next probe
	probes  int       // that failed

	row     int       // failures in a row
	first   *Delivery // the record of the first of them
	several bool      // whether there was another

	ramp int // how many may be in flight; 0: as many as the subscription may
}

func (c *circuit) limit(most int) int {
	if c.ramp == 0 {
		return most
	}
	return c.ramp
}

// succeed is told of each record that was accepted. It is true when the endpoint had been down.
func (c *circuit) succeed() (wasDown bool) {
	wasDown = c.down
	c.down, c.probes, c.row, c.first, c.several = false, 0, 0, nil, false
	if c.ramp *= 2; c.ramp > maxRamp {
		c.ramp = 0
	}
	return wasDown
}

// maxRamp is from where on the subscription's own limit is the only one.
const maxRamp = 1024

// fail is told of each attempt that failed, and when it ended as the engine counts. wait tells how
// long to wait after the nth probe in a row.
func (c *circuit) fail(d *Delivery, ended uint64, now time.Time, wait func(n int) time.Duration) {
	c.row++
	switch {
	case c.row == 1:
		c.first = d
	case d != c.first:
		c.several = true
	}
	if !c.down && (c.row < downAfter || !c.several) {
		return
	}
	if c.down && d.started < c.since { // no probe: it was in flight with those that told so
		if at := now.Add(wait(1)); at.After(c.probeAt) {
			c.probeAt = at
		}
		return
	}
	if !c.down {
		c.down, c.since, c.ramp, c.probes = true, ended, 1, 0
	}
	c.probes++
	c.probeAt = now.Add(wait(c.probes))
}
