package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child; its output goes into a file of the run's folder.
type process struct {
	cmd           *exec.Cmd
	log           string
	done          chan struct{}
	http, metrics string // addresses
}

func (b *bench) start(name string, env []string, command ...string) (*process, error) {
	p := &process{log: filepath.Join(b.dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	p.cmd = exec.Command(command[0], command[1:]...) //nolint:noctx // it ends by stop, in order
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when this process is killed
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	b.started = append(b.started, p)
	return p, nil
}

// stop kills: nothing that a run leaves behind is wanted.
func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (b *bench) stopAll() {
	for _, p := range b.started {
		p.stop()
	}
}

// ready waits until an address answers with 200.
func (p *process) ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-p.done:
			return p.failed("has ended")
		case <-ctx.Done():
			return p.failed("is not ready")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) failed(what string) error {
	text, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s %s; its output ends with:\n%s", p.cmd.Path, what, text[max(0, len(text)-2000):])
}

// startSide starts the line, the receiver, or a role of postamt with its default settings but for
// those of env.
func (b *bench) startSide(ctx context.Context, side string, env ...string) (*process, error) {
	address, metrics, err := freePorts()
	if err != nil {
		return nil, err
	}
	env = append(env, "HTTP_ADDRESS="+address, "METRICS_ADDRESS="+metrics, "KAFKA_BOOTSTRAP_SERVERS="+b.servers)
	command := []string{b.postamt, side}
	if side == "line" || side == "receiver" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		command = []string{self, side}
	}
	p, err := b.start(side, env, command...)
	if err != nil {
		return nil, err
	}
	p.http, p.metrics = "http://"+address, "http://"+metrics
	return p, p.ready(ctx, p.http+"/health")
}

// freePorts finds two ports of the loopback interface that nobody has.
func freePorts() (first, second string, err error) {
	var free [2]string
	for i := range free {
		ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not wait
		if err != nil {
			return "", "", err
		}
		defer func() { _ = ln.Close() }()
		free[i] = ln.Addr().String()
	}
	return free[0], free[1], nil
}

// startKafka starts one broker that is its own controller.
func (b *bench) startKafka(ctx context.Context) error {
	broker, controller, err := freePorts()
	if err != nil {
		return err
	}
	b.servers = broker
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	config := filepath.Join(b.dir, "server.properties")
	properties := strings.NewReplacer("BROKER", broker, "QUORUM", controller, "DIR", filepath.Join(b.dir, "data")).Replace(`
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@QUORUM
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://BROKER,CONTROLLER://QUORUM
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=DIR
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# What P1 to P4 write is not kept: tens of millions of records.
log.retention.check.interval.ms=5000
log.segment.delete.delay.ms=1000
`)
	logging := filepath.Join(b.dir, "log4j2.yaml")
	if err := errors.Join(os.WriteFile(config, []byte(properties), 0o600), os.WriteFile(logging, []byte(`
Configuration:
  Appenders: { Console: { name: OUT, PatternLayout: { pattern: "[%d] %p %m (%c)%n" } } }
  Loggers: { Root: { level: WARN, AppenderRef: [{ ref: OUT }] } }
`), 0o600)); err != nil {
		return err
	}
	java := []string{"java", "-Xmx1g", "-XX:+UseG1GC", "-Dlog4j2.configurationFile=" + logging, "-cp", b.jars + "/*"}
	format := append(java, "kafka.tools.StorageTool", "format", "-t", base64.RawURLEncoding.EncodeToString(id), "-c", config)
	if out, err := exec.CommandContext(ctx, format[0], format[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("format Kafka's storage: %w\n%s", err, out)
	}
	_, err = b.start("kafka", nil, append(java, "kafka.Kafka", config)...)
	return err
}

// makeTopics waits for Kafka, too.
func (b *bench) makeTopics(ctx context.Context) error {
	topics := filepath.Join(b.dir, "topics.yaml")
	if err := os.WriteFile(topics, []byte(`
topics:
  bench.load: { partitions: 6, configs: { retention.bytes: "134217728", segment.bytes: "67108864" } }
  bench.drain: { partitions: 6 }
  bench.idle: { partitions: 3 }
  `+deliveryTopic+`: { partitions: `+strconv.Itoa(deliveryPartitions)+` }
  `+lowLoadTopic+`: { partitions: 3 }
  bench.dead-letters: { partitions: 1 }
`), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, b.postamt, "bootstrap")
	cmd.Env = append(os.Environ(), "KAFKA_BOOTSTRAP_SERVERS="+b.servers, "TOPICS_FILE="+topics)
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("make the topics: %w\n%s", err, out), b.started[0].failed("may have failed"))
	}
	return nil
}

// cpu is the processor time that a process has used, in seconds.
func (p *process) cpu() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, text, _ = bytes.Cut(text, []byte(") "))
	fields := strings.Fields(string(text))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100 // Linux counts in hundredths for everyone
}

// status reads a number of /proc/PID/status: MiB of VmHWM, VmRSS and RssAnon, else as it is.
func (p *process) status(name string) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			fields := strings.Fields(value)
			n, _ := strconv.ParseFloat(fields[0], 64)
			if len(fields) > 1 { // kB
				n /= 1024
			}
			return n
		}
	}
	return 0
}

// handles counts the open files and sockets, and the sockets among them.
func (p *process) handles() (all, sockets float64) {
	folder := fmt.Sprintf("/proc/%d/fd/", p.cmd.Process.Pid)
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		if to, _ := os.Readlink(folder + e.Name()); strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	return float64(len(entries)), sockets
}

// counters sums a process' metrics, by name, or by name and labels where they are part of it.
func (p *process) counter(ctx context.Context, name string) (float64, error) {
	text, err := get(ctx, p.metrics+"/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name) {
			fields := strings.Fields(line)
			n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
