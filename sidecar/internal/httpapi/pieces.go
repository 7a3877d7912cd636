package httpapi

import (
	"bytes"
	"errors"
	"io"

	"postamt/sidecar/internal/event"
)

// pieceReader splits what it reads into pieces of at most max bytes.
type pieceReader struct {
	src  io.Reader
	max  int
	what string // the pieces are, in an error
	// end finds where the first piece of b ends: after that many bytes, or 0 where it goes on.
	// It is given what follows after what it was given before.
	end func(b []byte) (int, error)

	buf         []byte
	first, last int // of what was read and not given
	searched    int // of that
	err         error
}

// ahead is how many bytes were read beyond the last piece.
func (p *pieceReader) ahead() int { return p.last - p.first }

// next gives the next piece, valid until the next call. What has no end is a piece where the body
// ends, and not where it breaks off: there it may be half of one.
func (p *pieceReader) next() ([]byte, error) {
	if p.first == p.last && len(p.buf) > uploadBuffer {
		p.buf, p.first, p.last = nil, 0, 0 // one long piece is no reason to keep so much
	}
	for {
		n, err := p.end(p.buf[p.first+p.searched : p.last])
		if err != nil {
			return nil, err
		}
		if n > 0 {
			return p.take(p.searched + n)
		}
		p.searched = p.last - p.first
		switch {
		case p.searched > p.max+1: // the byte more is a line's end
			return p.take(p.searched) // which fails
		case errors.Is(p.err, io.EOF) && p.searched > 0:
			return p.take(p.searched)
		case p.err != nil:
			return nil, p.err
		}
		if p.first > 0 {
			p.last = copy(p.buf, p.buf[p.first:p.last])
			p.first = 0
		}
		if p.last == len(p.buf) {
			grown := make([]byte, max(uploadBuffer, min(2*len(p.buf), p.max+2)))
			copy(grown, p.buf)
			p.buf = grown
		}
		n, p.err = p.src.Read(p.buf[p.last:])
		p.last += n
	}
}

func (p *pieceReader) take(n int) ([]byte, error) {
	piece := p.buf[p.first : p.first+n]
	if len(bytes.TrimSuffix(piece, []byte("\n"))) > p.max {
		return nil, event.Errorf(event.TooLarge, 0, "read body", "a %s is longer than %d bytes (MAX_BODY_BYTES); send what comes after the last result with another request", p.what, p.max)
	}
	p.first += n
	p.searched = 0
	return piece, nil
}
