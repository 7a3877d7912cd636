//go:build stack

package stacktest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A container has the clock of its host, and a Go program asks the kernel's vDSO for it, past every
// library that could be put before it. So what is replaced here is the vDSO's code in the memory of
// the one process: it asks the kernel itself then, and adds what the clock is to be off by. The
// monotonic clock stays as it is, as it does when an administrator sets a real one.

// clockReader is a function of the vDSO, and what replaces it: code that ends the system call, and a
// number of seconds between the two halves.
type clockReader struct {
	name          string
	before, after []byte
}

// All for x86-64, whose system calls change rax, rcx and r11 alone.
var clockReaders = []clockReader{
	{
		"__vdso_clock_gettime", []byte{
			0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
			0x0f, 0x05, // syscall
			0x85, 0xc0, 0x75, 0x0b, // if it failed, return
			0x85, 0xff, 0x75, 0x07, // if it was not CLOCK_REALTIME, return
			0x48, 0x81, 0x06, // add qword [rsi], …
		}, []byte{0xc3},
	},
	{
		"__vdso_gettimeofday", []byte{
			0xb8, 96, 0, 0, 0, // mov eax, SYS_gettimeofday
			0x0f, 0x05,
			0x48, 0x85, 0xff, 0x74, 0x07, // if it was not asked for the time, return
			0x48, 0x81, 0x07, // add qword [rdi], …
		}, []byte{0xc3},
	},
	{
		"__vdso_time", []byte{
			0xb8, 201, 0, 0, 0, // mov eax, SYS_time
			0x0f, 0x05,
			0x48, 0x05, // add rax, …
		}, []byte{0x48, 0x85, 0xff, 0x74, 0x03, 0x48, 0x89, 0x07, 0xc3}, // store it where rdi points, if anywhere
	},
}

func (c clockReader) code(off time.Duration) []byte {
	seconds := int64(off / time.Second)
	if seconds < math.MinInt32 || seconds > math.MaxInt32 {
		panic(off)
	}
	return append(binary.LittleEndian.AppendUint32(bytes.Clone(c.before), uint32(int32(seconds))), c.after...)
}

// shiftClock puts the clock of a running container's process off until setRight is called, the
// container is restarted, or the test ends.
func shiftClock(t *testing.T, container string, off time.Duration) (setRight func()) {
	t.Helper()
	if runtime.GOARCH != "amd64" || os.Geteuid() != 0 {
		t.Skipf("the clock of a container is shifted by root, and on amd64 alone; this is %s, user %d", runtime.GOARCH, os.Geteuid())
	}
	pid := docker(t, "inspect", "--format", "{{.State.Pid}}", container)
	was := writeClockReaders(t, pid, func(c clockReader, _ []byte) []byte { return c.code(off) })
	setRight = sync.OnceFunc(func() {
		if now := docker(t, "inspect", "--format", "{{.State.Pid}}", container); now == pid {
			writeClockReaders(t, pid, func(c clockReader, _ []byte) []byte { return was[c.name] })
		}
	})
	t.Cleanup(setRight)
	return setRight
}

// writeClockReaders replaces functions of the vDSO of a process, and returns what they were. The
// process is stopped meanwhile, at a moment when none of its threads is in the vDSO. (To pause its
// container would make that unhealthy until the next check, so that Traefik takes it out.)
func writeClockReaders(t *testing.T, pid string, code func(c clockReader, was []byte) []byte) map[string][]byte {
	t.Helper()
	from, to := vdsoOf(t, pid)
	memory, err := os.OpenFile("/proc/"+pid+"/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = memory.Close() }()
	image := make([]byte, to-from)
	if _, err := io.ReadFull(io.NewSectionReader(memory, from, to-from), image); err != nil {
		t.Fatal(err)
	}
	vdso, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := vdso.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	signal := func(s syscall.Signal) {
		number, _ := strconv.Atoi(pid)
		if err := syscall.Kill(number, s); err != nil {
			t.Error(err)
		}
	}
	defer signal(syscall.SIGCONT)
	eventually(t, time.Minute, "no thread of the process reads the clock", func() error {
		signal(syscall.SIGCONT)
		signal(syscall.SIGSTOP)
		return poll(time.Second, func() error { return outside(pid, from, to) })
	})
	was := make(map[string][]byte)
	for _, c := range clockReaders {
		for _, s := range symbols {
			if s.Name != c.name {
				continue
			}
			was[c.name] = bytes.Clone(image[s.Value : s.Value+s.Size])
			written := code(c, was[c.name])
			if len(written) > int(s.Size) {
				t.Fatalf("%s has room for %d bytes; want %d", s.Name, s.Size, len(written))
			}
			if _, err := memory.WriteAt(written, from+int64(s.Value)); err != nil {
				t.Fatal(err)
			}
		}
		if was[c.name] == nil {
			t.Fatalf("the vDSO has no %s", c.name)
		}
	}
	return was
}

// vdsoOf tells where a process has the vDSO.
func vdsoOf(t *testing.T, pid string) (from, to int64) {
	t.Helper()
	maps, err := os.ReadFile("/proc/" + pid + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				t.Fatal(err)
			}
			return from, to
		}
	}
	t.Fatalf("process %s has no vDSO", pid)
	return 0, 0
}

// outside is nil if no thread of a process that is stopped executes what is between two addresses.
func outside(pid string, from, to int64) error {
	threads, err := filepath.Glob("/proc/" + pid + "/task/*/syscall")
	if err != nil || len(threads) == 0 {
		return fmt.Errorf("process %s has no threads: %w", pid, err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			return err
		}
		counter := strings.TrimSpace(string(text)) // the last word of it
		counter = counter[strings.LastIndexByte(counter, ' ')+1:]
		var at int64
		if _, err := fmt.Sscanf(counter, "0x%x", &at); err != nil || at >= from && at < to {
			return fmt.Errorf("%s says %q", thread, text)
		}
	}
	return nil
}
