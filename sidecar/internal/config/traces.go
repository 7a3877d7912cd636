package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/trace"
)

// Traces configures traces by the variables that OpenTelemetry's SDKs have in common. There are none
// without an endpoint; the other variables are not looked at then, since they may be meant for others.
// A variable for traces alone goes before the one for all that is sent.
type Traces struct {
	Disabled       string `env:"SDK_DISABLED" envDefault:"false" help:"true: there are no traces, whatever the other variables say"`
	Exporter       string `env:"TRACES_EXPORTER" envDefault:"otlp" help:"none: there are no traces, whatever the other variables say; otlp is the only other one that there is here"`
	Endpoint       string `env:"EXPORTER_OTLP_ENDPOINT" envDefault:"none" help:"where traces are sent, by OTLP over HTTP: http://collector:4318, to which /v1/traces is added. none: there are no traces"`
	WholeEndpoint  string `env:"EXPORTER_OTLP_TRACES_ENDPOINT" envDefault:"none" help:"the same as the whole URL; it goes before OTEL_EXPORTER_OTLP_ENDPOINT"`
	Protocol       string `env:"EXPORTER_OTLP_PROTOCOL" envDefault:"http/protobuf" help:"the only one that there is here"`
	TracesProtocol string `env:"EXPORTER_OTLP_TRACES_PROTOCOL" envDefault:"none" help:"the same for traces alone; none: OTEL_EXPORTER_OTLP_PROTOCOL holds"`
	Headers        Secret `env:"EXPORTER_OTLP_HEADERS" envDefault:"none" help:"headers of requests to the endpoint, such as a key: name=value, with commas between, values percent-encoded"`
	TracesHeaders  Secret `env:"EXPORTER_OTLP_TRACES_HEADERS" envDefault:"none" help:"the same for traces alone; none: OTEL_EXPORTER_OTLP_HEADERS hold"`
	TimeoutMillis  int    `env:"EXPORTER_OTLP_TIMEOUT" envDefault:"10000" help:"how long the endpoint may take to answer, in milliseconds"`
	TracesTimeout  int    `env:"EXPORTER_OTLP_TRACES_TIMEOUT" envDefault:"0" help:"the same for traces alone; 0: OTEL_EXPORTER_OTLP_TIMEOUT holds"`
	Service        string `env:"SERVICE_NAME" envDefault:"auto" help:"service.name of the traces; auto: postamt-ROLE"`
	Attributes     string `env:"RESOURCE_ATTRIBUTES" envDefault:"none" help:"what else traces say of this process: name=value, with commas between, values percent-encoded"`
	Sampler        string `env:"TRACES_SAMPLER" envDefault:"parentbased_traceidratio" help:"which traces are sent; the ones that begin with parentbased_ send those that a client's traceparent asks for, and none that it does not want"`
	SamplerArg     string `env:"TRACES_SAMPLER_ARG" envDefault:"0.01" help:"which part of the traces that begin here is sent, from 0 to 1, where the sampler's name ends with traceidratio"`
	MaxQueue       int    `env:"BSP_MAX_QUEUE_SIZE" envDefault:"2048" help:"spans that wait for the endpoint; beyond, they are dropped and counted (postamt_trace_spans_total)"`
	DelayMillis    int    `env:"BSP_SCHEDULE_DELAY" envDefault:"5000" help:"how long a span waits for others before it is sent, in milliseconds"`
	MaxLinksOfSpan int    `env:"SPAN_LINK_COUNT_LIMIT" envDefault:"128" help:"links of one span: of an answer with many records, to the traces that so many of them were made in"`
}

// On tells whether there are traces.
func (t *Traces) On() bool {
	return (t.Endpoint != unset || t.WholeEndpoint != unset) && !strings.EqualFold(t.Disabled, "true") && t.Exporter != unset
}

const unset = "none"

// withoutEmpty leaves out variables of OpenTelemetry that are set to nothing, which is as if it were not set, as OpenTelemetry has it.
func withoutEmpty(environ map[string]string) map[string]string {
	out := maps.Clone(environ)
	maps.DeleteFunc(out, func(name, value string) bool { return strings.HasPrefix(name, "OTEL_") && value == "" })
	return out
}

// Options are what Traces say. An error has one line for each mistake.
func (t *Traces) Options() (trace.Options, error) {
	o := trace.Options{
		Timeout: time.Duration(cmp.Or(t.TracesTimeout, t.TimeoutMillis)) * time.Millisecond, Delay: time.Duration(t.DelayMillis) * time.Millisecond,
		MaxQueue: t.MaxQueue, MaxLinks: t.MaxLinksOfSpan, Sampler: trace.Sampler{Name: t.Sampler, Ratio: 1},
	}
	if t.Service != "auto" {
		o.Service = t.Service
	}
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var err error
	if t.WholeEndpoint != unset {
		o.Endpoint, err = endpoint("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", t.WholeEndpoint, "")
	} else {
		o.Endpoint, err = endpoint("OTEL_EXPORTER_OTLP_ENDPOINT", t.Endpoint, "/v1/traces")
	}
	errs = append(errs, err) // Join leaves out what is nil
	require(strings.EqualFold(t.Disabled, "false"), "OTEL_SDK_DISABLED is %q; it must be true or false", t.Disabled)
	require(t.Exporter == "otlp", "OTEL_TRACES_EXPORTER is %q; it must be otlp or none", t.Exporter)
	name, value := "OTEL_EXPORTER_OTLP_PROTOCOL", t.Protocol
	if t.TracesProtocol != unset {
		name, value = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", t.TracesProtocol
	}
	require(value == "http/protobuf", "%s is %q; it must be http/protobuf, for which collectors listen on port 4318", name, value)
	name, value = "OTEL_EXPORTER_OTLP_HEADERS", string(t.Headers)
	if t.TracesHeaders != unset {
		name, value = "OTEL_EXPORTER_OTLP_TRACES_HEADERS", string(t.TracesHeaders)
	}
	o.Headers, err = pairs(value)
	require(err == nil, "%s must be name=value, with commas between and values percent-encoded", name) // and no word of the key that is in it
	o.Attributes, err = pairs(t.Attributes)
	require(err == nil, "OTEL_RESOURCE_ATTRIBUTES is %q; it must be name=value, with commas between and values percent-encoded", t.Attributes)
	if name := o.Attributes["service.name"]; o.Service == "" {
		o.Service = name
	}
	require(slices.Contains(trace.Samplers, t.Sampler), "OTEL_TRACES_SAMPLER is %q; it must be one of %s", t.Sampler, strings.Join(trace.Samplers, ", "))
	if strings.HasSuffix(t.Sampler, "traceidratio") {
		o.Sampler.Ratio, err = strconv.ParseFloat(t.SamplerArg, 64)
		require(err == nil && o.Sampler.Ratio >= 0 && o.Sampler.Ratio <= 1, "OTEL_TRACES_SAMPLER_ARG is %q; it must be a number from 0 to 1", t.SamplerArg)
	}
	for name, n := range map[string]int{"OTEL_EXPORTER_OTLP_TIMEOUT": t.TimeoutMillis, "OTEL_BSP_MAX_QUEUE_SIZE": t.MaxQueue, "OTEL_BSP_SCHEDULE_DELAY": t.DelayMillis} {
		require(n > 0, "%s is %d; it must be positive", name, n)
	}
	require(t.TracesTimeout >= 0, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is %d; it must not be negative", t.TracesTimeout)
	require(t.MaxLinksOfSpan >= 0, "OTEL_SPAN_LINK_COUNT_LIMIT is %d; it must not be negative", t.MaxLinksOfSpan)
	return o, errors.Join(errs...)
}

// endpoint reads the URL of a collector and adds a path.
func endpoint(name, text, path string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil && strings.Contains(text, "@"), err == nil && u.User != nil:
		return "", fmt.Errorf("%s has a user or a password, which `postamt config` would show; it must have none: OTEL_EXPORTER_OTLP_HEADERS takes a key", name)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%s is %q; it must be the URL of a collector that takes OTLP over HTTP, such as http://collector:4318, or none", name, text)
	}
	if path != "" {
		u = u.JoinPath(path)
	}
	return u.String(), nil
}

// pairs reads name=value,….
func pairs(text string) (map[string]string, error) {
	out := make(map[string]string)
	if text == unset {
		return out, nil
	}
	for pair := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || name == "" || err != nil {
			return nil, errors.New("not name=value")
		}
		out[name] = value
	}
	return out, nil
}
