package deliver

import "sync/atomic"

// recordOverheadBytes is about what a record takes in a window beside its key, value and headers.
const recordOverheadBytes = 640

// Memory bounds what all windows of a replica hold together: one endpoint that is down for long must
// not take the process down, and with it the deliveries to all others. Once it is used up,
// partitions rest that hold more than an equal share of it. Those with less are read on, so that no
// subscription waits for another one's endpoint: at most twice as much is held in all, and what the
// last polls bring. A nil Memory has no bound. It is safe for concurrent use.
type Memory struct {
	max        int64
	held       atomic.Int64
	partitions atomic.Int64
}

// NewMemory makes a Memory of so many bytes.
func NewMemory(maxBytes int64) *Memory { return &Memory{max: maxBytes} }

// join and leave tell of a partition, which holds nothing when it joins.
func (m *Memory) join() {
	if m != nil {
		m.partitions.Add(1)
	}
}

func (m *Memory) leave(held int64) {
	if m != nil {
		m.partitions.Add(-1)
		m.held.Add(-held)
	}
}

func (m *Memory) hold(more int64) {
	if m != nil {
		m.held.Add(more)
	}
}

// crowded tells whether a partition that holds so much is to rest for the others' sake. One that has
// rested goes on a little later than another one begins to rest.
func (m *Memory) crowded(held int64, rests bool) bool {
	if m == nil {
		return false
	}
	bound, share := m.max, m.max/max(1, m.partitions.Load())
	if rests {
		bound, share = bound/8*7, share/2
	}
	return m.held.Load() >= bound && held > share
}
