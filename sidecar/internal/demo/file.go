package demo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// compactBytes is how much comes after the snapshot in the web shop's file before there is a new one.
const compactBytes = 16 << 20

// file keeps a web shop's secret and book: a snapshot in its first line, and in each line after it a
// delivery that came later. What is in it outlives the process, not the machine.
type file struct {
	path  string
	f     *os.File
	bytes int64 // after the snapshot
}

type snapshot struct {
	Secret string
	Book   *book
}

// openFile reads what there is; a last line that was cut off was never answered with 204. known is
// false where there is no file yet.
func openFile(path, secret string) (f *file, s snapshot, known bool, err error) {
	s = snapshot{secret, newBook(0)}
	if path == "" {
		return nil, s, false, nil
	}
	f = &file{path: path}
	text, err := os.ReadFile(path) //nolint:gosec // the path is a setting
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, s, false, fmt.Errorf("DEMO_FILE: %w", err)
	}
	lines := bufio.NewReader(bytes.NewReader(text))
	if first, err := lines.ReadBytes('\n'); err == nil {
		if err := json.Unmarshal(first, &s); err != nil {
			return nil, s, false, fmt.Errorf("DEMO_FILE: %s is no file of the web shop: %w", path, err)
		}
		known = true
	}
	for known {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		var d delivery
		if err := json.Unmarshal(line, &d); err != nil {
			return nil, s, false, fmt.Errorf("DEMO_FILE: %s: %w", path, err)
		}
		s.Book = s.Book.take(d)
	}
	return f, s, known, f.write(s)
}

// write replaces the file by a snapshot.
func (f *file) write(s snapshot) error {
	if f == nil {
		return nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	next, err := os.OpenFile(f.path+".new", os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		err = os.Rename(f.path+".new", f.path)
	}
	if err != nil {
		return err
	}
	_ = f.close()
	f.f, f.bytes = next, 0
	return nil
}

// add appends a delivery. full tells that there should be a snapshot.
func (f *file) add(d delivery) (full bool, err error) {
	if f == nil {
		return false, nil
	}
	line, err := json.Marshal(d)
	if err != nil {
		return false, err
	}
	n, err := f.f.Write(append(line, '\n'))
	f.bytes += int64(n)
	return f.bytes >= compactBytes, err
}

func (f *file) close() error {
	if f == nil || f.f == nil {
		return nil
	}
	return f.f.Close()
}
