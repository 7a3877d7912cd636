package containers

import (
	"github.com/prometheus/client_golang/prometheus"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// of is a metric of one container; name is Docker's, service Compose's.
func of(name, help string) *prometheus.Desc { return desc(name, help, "name", "service") }

// The names and what they mean are cAdvisor's, but for running, healthy and restarts, which it does not
// have. Disks are added up. Networks are not: one that is taken off a container would take its bytes off
// the sum, and a counter that falls is one that began anew.
var (
	infoDesc    = desc("container_info", "Always 1; the labels say what the container is.", "name", "service", "project", "image", "id")
	runningDesc = of("container_running", "1 while the container runs, else 0. One that has done its work does not run, either.")
	healthyDesc = of("container_healthy", "1 while the health check succeeds, 0 while it fails or the container starts; absent without a health check.")
	startDesc   = of("container_start_time_seconds", "When the container was started last, in Unix time.")
	restartDesc = of("container_restarts_total", "Times that Docker has started the container again, because it had ended.")
	oomDesc     = of("container_oom_events_total", "OOM kills in the container since this exporter began, as far as Docker tells of them: with cgroup v1 it may miss that of the main process.")

	cpuDesc           = of("container_cpu_usage_seconds_total", "Processor time used.")
	cpuUserDesc       = of("container_cpu_user_seconds_total", "Processor time used in user mode.")
	cpuSystemDesc     = of("container_cpu_system_seconds_total", "Processor time used in the kernel.")
	periodsDesc       = of("container_cpu_cfs_periods_total", "Periods of a processor limit that have passed; 0 without a limit.")
	throttledDesc     = of("container_cpu_cfs_throttled_periods_total", "Periods in which the container had to wait.")
	throttledTimeDesc = of("container_cpu_cfs_throttled_seconds_total", "Time that it had to wait.")

	memoryDesc       = of("container_memory_usage_bytes", "Memory in use, with what of files is kept in it.")
	workingSetDesc   = of("container_memory_working_set_bytes", "Memory in use without inactive pages of files: what `docker stats` shows.")
	rssDesc          = of("container_memory_rss", "Memory of the processes themselves (anonymous), in bytes.")
	activeFileDesc   = of("container_memory_total_active_file_bytes", "Pages of files that are in use; the kernel can take them back.")
	inactiveFileDesc = of("container_memory_total_inactive_file_bytes", "Pages of files that are not in use; the kernel takes them back first.")
	memoryLimitDesc  = of("container_spec_memory_limit_bytes", "Limit of the memory; 0 for none.")

	threadsDesc    = of("container_threads", "Threads of all processes.")
	threadsMaxDesc = of("container_threads_max", "Limit of the threads; 0 for none.")
	receivedDesc   = desc("container_network_receive_bytes_total", "Bytes received from the network of the interface.", "name", "service", "interface")
	sentDesc       = desc("container_network_transmit_bytes_total", "Bytes sent to the network of the interface.", "name", "service", "interface")
	readDesc       = of("container_fs_reads_bytes_total", "Bytes read from disks; absent where the kernel does not count them.")
	writtenDesc    = of("container_fs_writes_bytes_total", "Bytes written to disks; absent where the kernel does not count them.")

	durationDesc    = desc("postamt_containers_collect_duration_seconds", "How long the last look at all containers took.")
	lastCollectDesc = desc("postamt_containers_last_collect_timestamp_seconds", "When the last look at all containers succeeded, in Unix time; 0 before the first.")
	errorsDesc      = desc("postamt_containers_collect_errors_total", "Looks at all containers that failed, or in which something was missing.")
	leftOutDesc     = desc("postamt_containers_left_out", "Containers beyond MAX_CONTAINERS, of which there are no metrics.")
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		infoDesc, runningDesc, healthyDesc, startDesc, restartDesc, oomDesc,
		cpuDesc, cpuUserDesc, cpuSystemDesc, periodsDesc, throttledDesc, throttledTimeDesc,
		memoryDesc, workingSetDesc, rssDesc, activeFileDesc, inactiveFileDesc, memoryLimitDesc,
		threadsDesc, threadsMaxDesc, receivedDesc, sentDesc, readDesc, writtenDesc,
		durationDesc, lastCollectDesc, errorsDesc, leftOutDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector: what the last look has shown, unless it is too old.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value := func(kind prometheus.ValueType) func(*prometheus.Desc, float64, ...string) {
		return func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
		}
	}
	gauge, counter := value(prometheus.GaugeValue), value(prometheus.CounterValue)
	counter(errorsDesc, float64(c.errors))
	gauge(durationDesc, c.duration.Seconds())
	gauge(leftOutDesc, float64(c.leftOut))
	if c.collected.IsZero() {
		gauge(lastCollectDesc, 0)
		return
	}
	gauge(lastCollectDesc, float64(c.collected.UnixMilli())/1000)
	// Half a round more: a look that is due now is not missed yet.
	round := max(c.Interval, c.duration)
	if c.Now().Sub(c.collected) > missedRounds*round+round/2 {
		return
	}
	for _, one := range c.found {
		labels := []string{one.name, one.service}
		gauge(infoDesc, 1, one.name, one.service, c.Project, one.image, one.id)
		gauge(runningDesc, oneIf(one.State.Running), labels...)
		counter(restartDesc, float64(one.RestartCount), labels...)
		counter(oomDesc, float64(c.kills[one.id].count), labels...)
		if one.stats != nil {
			one.collect(gauge, counter, labels)
		}
	}
}

// collect is what only a container that runs has.
func (one *container) collect(gauge, counter func(*prometheus.Desc, float64, ...string), labels []string) {
	if one.State.Health != nil {
		gauge(healthyDesc, oneIf(one.State.Health.Status == "healthy"), labels...)
	}
	gauge(startDesc, float64(one.State.StartedAt.UnixMilli())/1000, labels...)

	s := one.stats
	counter(cpuDesc, seconds(s.CPU.Usage.Total), labels...)
	counter(cpuUserDesc, seconds(s.CPU.Usage.User), labels...)
	counter(cpuSystemDesc, seconds(s.CPU.Usage.System), labels...)
	counter(periodsDesc, float64(s.CPU.Throttling.Periods), labels...)
	counter(throttledDesc, float64(s.CPU.Throttling.Throttled), labels...)
	counter(throttledTimeDesc, seconds(s.CPU.Throttling.Time), labels...)

	inactive := s.memory("total_inactive_file", "inactive_file")
	gauge(memoryDesc, float64(s.Memory.Usage), labels...)
	gauge(workingSetDesc, float64(s.Memory.Usage-min(inactive, s.Memory.Usage)), labels...)
	gauge(rssDesc, float64(s.memory("total_rss", "anon")), labels...)
	gauge(activeFileDesc, float64(s.memory("total_active_file", "active_file")), labels...)
	gauge(inactiveFileDesc, float64(inactive), labels...)
	gauge(memoryLimitDesc, float64(one.HostConfig.Memory), labels...)

	gauge(threadsDesc, float64(s.Pids.Current), labels...)
	limit := int64(0)
	if one.HostConfig.PidsLimit != nil {
		limit = max(0, *one.HostConfig.PidsLimit)
	}
	gauge(threadsMaxDesc, float64(limit), labels...)
	for name, n := range s.Networks {
		counter(receivedDesc, float64(n.ReceivedBytes), one.name, one.service, name)
		counter(sentDesc, float64(n.SentBytes), one.name, one.service, name)
	}
	for d, op := range map[*prometheus.Desc]string{readDesc: "read", writtenDesc: "write"} {
		if bytes, counted := s.block(op); counted {
			counter(d, float64(bytes), labels...)
		}
	}
}

func seconds(nanoseconds uint64) float64 { return float64(nanoseconds) / 1e9 }

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
