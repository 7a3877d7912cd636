package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// What Compose calls its containers.
const (
	projectLabel = "com.docker.compose.project"
	serviceLabel = "com.docker.compose.service"
	oneOffLabel  = "com.docker.compose.oneoff" // True for those of `docker compose run`
)

// maxAnswerBytes bounds what one answer of the engine may be; the list of 1,000 containers has 2 MiB.
const maxAnswerBytes = 16 << 20

// engine asks the API of Docker Engine 20.10 or newer, without a version: in the newest one that it has.
// It needs to be let through to GET /containers/json, /containers/<id>/json, /containers/<id>/stats
// and /events.
type engine struct {
	url  string
	http *http.Client
}

// listed is a container in GET /containers/json.
type listed struct {
	ID     string `json:"Id"`
	Names  []string
	Image  string
	State  string
	Labels map[string]string
}

// inspected is what is used of GET /containers/<id>/json. It has more, such as the environment.
type inspected struct {
	RestartCount int
	State        struct {
		Running   bool
		StartedAt time.Time
		Health    *struct{ Status string }
	}
	HostConfig struct {
		Memory    int64  // bytes; 0 without a limit
		PidsLimit *int64 // nil, 0 or -1 without one
	}
}

// stats is what is used of GET /containers/<id>/stats. Names of cgroup v1 and v2 stand side by side.
type stats struct {
	Read time.Time `json:"read"` // zero where nothing was
	CPU  struct {
		Usage struct {
			Total  uint64 `json:"total_usage"` // nanoseconds, like the next two
			User   uint64 `json:"usage_in_usermode"`
			System uint64 `json:"usage_in_kernelmode"`
		} `json:"cpu_usage"`
		Throttling struct {
			Periods   uint64 `json:"periods"`
			Throttled uint64 `json:"throttled_periods"`
			Time      uint64 `json:"throttled_time"` // nanoseconds
		} `json:"throttling_data"`
	} `json:"cpu_stats"`
	Memory struct {
		Usage uint64            `json:"usage"`
		Stats map[string]uint64 `json:"stats"`
	} `json:"memory_stats"`
	Pids struct {
		Current uint64 `json:"current"` // threads count
	} `json:"pids_stats"`
	Networks map[string]struct {
		ReceivedBytes uint64 `json:"rx_bytes"`
		SentBytes     uint64 `json:"tx_bytes"`
	} `json:"networks"`
	Block struct {
		Bytes []struct {
			Op    string `json:"op"`
			Value uint64 `json:"value"`
		} `json:"io_service_bytes_recursive"`
	} `json:"blkio_stats"`
}

// memory returns a field of cgroup v1's memory.stat, which counts what is below, too, or of v2's.
func (s *stats) memory(v1, v2 string) uint64 {
	if n, ok := s.Memory.Stats[v1]; ok {
		return n
	}
	return s.Memory.Stats[v2]
}

// block returns the bytes read or written. false: the kernel does not count them, as cgroup v1 of new kernels.
func (s *stats) block(op string) (bytes uint64, counted bool) {
	for _, b := range s.Block.Bytes {
		if strings.EqualFold(b.Op, op) { // v1 says Read
			bytes, counted = bytes+b.Value, true
		}
	}
	return bytes, counted
}

// oomEvent says that the kernel has killed a process in a container for want of memory.
type oomEvent struct {
	Actor    struct{ ID string }
	TimeNano int64 `json:"timeNano"`
}

// goneError is the answer for a container that has been removed meanwhile.
type goneError struct{ path string }

func (e goneError) Error() string { return e.path + ": there is no such container" }

func (e *engine) get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, goneError{path}
	}
	return nil, fmt.Errorf("GET %s: %s: %s", path, resp.Status, strings.TrimSpace(string(text)))
}

func (e *engine) read(ctx context.Context, path string, query url.Values, v any) error {
	body, err := e.get(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswerBytes)).Decode(v); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// ping asks for next to nothing.
func (e *engine) ping(ctx context.Context) error {
	body, err := e.get(ctx, "/_ping", nil)
	if err != nil {
		return err
	}
	return body.Close()
}

func filters(of map[string][]string) url.Values {
	text, _ := json.Marshal(of) // of strings: no error
	return url.Values{"filters": {string(text)}}
}

// list returns the containers of a project's services, also those that do not run.
func (e *engine) list(ctx context.Context, project string) (all []listed, err error) {
	query := filters(map[string][]string{"label": {projectLabel + "=" + project, oneOffLabel + "=False"}})
	query.Set("all", "true")
	err = e.read(ctx, "/containers/json", query, &all)
	return all, err
}

func (e *engine) inspect(ctx context.Context, id string) (in inspected, err error) {
	err = e.read(ctx, "/containers/"+id+"/json", nil, &in)
	return in, err
}

// stats are nil of a container that does not run any more. They take up to a second: Engine 20.10 answers
// when it next looks at all containers, newer ones at once.
func (e *engine) stats(ctx context.Context, id string) (s *stats, err error) {
	err = e.read(ctx, "/containers/"+id+"/stats", url.Values{"stream": {"false"}, "one-shot": {"true"}}, &s)
	// An empty answer or one of zeros: the container has ended meanwhile, or Docker is starting it again.
	if errors.Is(err, io.EOF) || err == nil && (s == nil || s.Read.IsZero()) {
		return nil, nil
	}
	return s, err
}

// follow calls seen for each OOM kill in the project's containers since the time, until ctx ends or
// the connection does.
func (e *engine) follow(ctx context.Context, project string, since time.Time, seen func(oomEvent)) error {
	query := filters(map[string][]string{
		"type": {"container"}, "event": {"oom"}, "label": {projectLabel + "=" + project},
	})
	query.Set("since", fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()))
	body, err := e.get(ctx, "/events", query)
	if err != nil {
		return err
	}
	defer body.Close()
	for lines := json.NewDecoder(body); ; {
		var event oomEvent
		if err := lines.Decode(&event); err != nil {
			return fmt.Errorf("GET /events: %w", err)
		}
		seen(event)
	}
}
