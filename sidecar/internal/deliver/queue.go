package deliver

import (
	"container/heap"
	"slices"
	"time"
)

// queue is first in, first out. What has gone on to another stage since it was put in is passed
// over, and so is what is of a sealed partition.
type queue struct {
	list []*Delivery
	head int
}

func (q *queue) push(d *Delivery) { q.list = append(q.list, d) }

// some tells whether pop would give one.
func (q *queue) some(s stage) bool {
	for ; q.head < len(q.list); q.head++ {
		if d := q.list[q.head]; d.state == s && !d.partition.sealed {
			return true
		}
		q.list[q.head] = nil
	}
	q.list, q.head = q.list[:0], 0
	return false
}

func (q *queue) pop(s stage) *Delivery {
	if !q.some(s) {
		return nil
	}
	d := q.list[q.head]
	q.list[q.head] = nil
	q.head++
	if q.head > 64 && q.head > len(q.list)/2 { // what is left moves up, so that the array is not kept for good
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	return d
}

// drop takes out what is of a partition.
func (q *queue) drop(p *partition) {
	q.list = slices.DeleteFunc(q.list[q.head:], func(d *Delivery) bool { return d.partition == p })
	q.head = 0
}

// restHeap is what waits for a time, the soonest first.
type restHeap struct{ list restList }

func (h *restHeap) add(d *Delivery, until time.Time) {
	d.until = until
	heap.Push(&h.list, d)
}

func (h *restHeap) remove(d *Delivery) {
	if d.index >= 0 {
		heap.Remove(&h.list, d.index)
	}
}

// due takes out the first that has rested for long enough.
func (h *restHeap) due(now time.Time) *Delivery {
	if len(h.list) == 0 || h.list[0].until.After(now) {
		return nil
	}
	return heap.Pop(&h.list).(*Delivery)
}

func (h *restHeap) next() time.Time {
	if len(h.list) == 0 {
		return time.Time{}
	}
	return h.list[0].until
}

// reorder is called after the times of some have been changed.
func (h *restHeap) reorder() { heap.Init(&h.list) }

func (h *restHeap) drop(p *partition) {
	h.list = slices.DeleteFunc(h.list, func(d *Delivery) bool {
		if d.partition != p {
			return false
		}
		d.index = -1
		return true
	})
	for i, d := range h.list {
		d.index = i
	}
	h.reorder()
}

type restList []*Delivery

// Len, Less, Swap, Push and Pop are heap's.
func (l *restList) Len() int { return len(*l) }

// Less puts the soonest first.
func (l *restList) Less(i, j int) bool { return (*l)[i].until.Before((*l)[j].until) }

// Swap keeps the indices right.
func (l *restList) Swap(i, j int) {
	all := *l
	all[i], all[j] = all[j], all[i]
	all[i].index, all[j].index = i, j
}

// Push is heap's.
func (l *restList) Push(x any) {
	d := x.(*Delivery)
	d.index = len(*l)
	*l = append(*l, d)
}

// Pop is heap's.
func (l *restList) Pop() any {
	n := len(*l) - 1
	d := (*l)[n]
	(*l)[n] = nil
	*l = (*l)[:n]
	d.index = -1
	return d
}
