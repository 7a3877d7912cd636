package config

import (
	"maps"
	"strings"
	"testing"
	"time"
)

func TestTracesAreOffWithoutAnEndpoint(t *testing.T) {
	// What is set for other programs on a machine is no mistake here.
	cfg, err := Load(map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_BSP_MAX_QUEUE_SIZE": ""})
	if err != nil || cfg.Traces.On() {
		t.Errorf("traces are on: %v, %v", cfg.Traces.On(), err)
	}
	if cfg.Traces.MaxQueue != 2048 {
		t.Errorf("a variable that is set to nothing is %d, want its default", cfg.Traces.MaxQueue)
	}
}

func TestTracesCanBeSwitchedOff(t *testing.T) {
	for name, tc := range map[string]struct {
		environ map[string]string
		on      bool
	}{
		"disabled":           {map[string]string{"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_SAMPLER": "jaeger_remote"}, false},
		"disabled in others": {map[string]string{"OTEL_SDK_DISABLED": "True"}, false},
		"not disabled":       {map[string]string{"OTEL_SDK_DISABLED": "FALSE"}, true},
		"no exporter":        {map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_TRACES_SAMPLER": "jaeger_remote"}, false},
		"an exporter":        {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true},
	} {
		tc.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://collector:4318"
		if cfg, err := Load(tc.environ); err != nil || cfg.Traces.On() != tc.on {
			t.Errorf("%s: traces are on: %v, %v", name, cfg.Traces.On(), err)
		}
	}
}

// What is for traces alone goes before what is for all.
func TestVariablesForTracesAlone(t *testing.T) {
	all := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_HEADERS": "a=1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1000"}
	alone := maps.Clone(all)
	maps.Copy(alone, map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=sesame", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2000"})
	for _, tc := range []struct {
		environ map[string]string
		headers map[string]string
		timeout time.Duration
	}{{all, map[string]string{"a": "1"}, time.Second}, {alone, map[string]string{"b": "sesame"}, 2 * time.Second}} {
		cfg, err := Load(tc.environ)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := cfg.Traces.Options(); err != nil || !maps.Equal(o.Headers, tc.headers) || o.Timeout != tc.timeout {
			t.Errorf("%+v, %v; want the headers %v and %v", o, err, tc.headers, tc.timeout)
		}
		var table strings.Builder
		if err := cfg.WriteTable(&table); err != nil || strings.Contains(table.String(), "sesame") {
			t.Errorf("the table shows what is secret: %v\n%s", err, table.String())
		}
	}
}

func TestOptionsOfTraces(t *testing.T) {
	for name, tc := range map[string]struct {
		environ           map[string]string
		endpoint, service string
		ratio             float64
	}{
		"defaults":          {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/traces", "", 0.01},
		"below a path":      {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector/otlp/"}, "https://collector/otlp/v1/traces", "", 0.01},
		"the whole URL":     {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:4318/spans"}, "http://b:4318/spans", "", 0.01},
		"only that":         {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:4318"}, "http://b:4318", "", 0.01},
		"a name":            {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_SERVICE_NAME": "one", "OTEL_RESOURCE_ATTRIBUTES": "service.name=two"}, "http://c:1/v1/traces", "one", 0.01},
		"of the attributes": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_RESOURCE_ATTRIBUTES": "service.name=two"}, "http://c:1/v1/traces", "two", 0.01},
		"a ratio":           {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, "http://c:1/v1/traces", "", 0.5},
	} {
		cfg, err := Load(tc.environ)
		if err != nil || !cfg.Traces.On() {
			t.Errorf("%s: %v", name, err)
			continue
		}
		o, err := cfg.Traces.Options()
		if err != nil || o.Endpoint != tc.endpoint || o.Service != tc.service || o.Sampler.Ratio != tc.ratio {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
}

func TestHeadersOfTracesAreSecret(t *testing.T) {
	cfg, err := Load(map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20sesame=, X-Tenant = a%2Cb ", "OTEL_RESOURCE_ATTRIBUTES": "a=1,b=",
	})
	if err != nil {
		t.Fatal(err)
	}
	o, err := cfg.Traces.Options()
	if err != nil || !maps.Equal(o.Headers, map[string]string{"Authorization": "Bearer sesame=", "X-Tenant": "a,b"}) || !maps.Equal(o.Attributes, map[string]string{"a": "1", "b": ""}) {
		t.Errorf("%+v, %v", o, err)
	}
	var table strings.Builder
	if err := cfg.WriteTable(&table); err != nil || strings.Contains(table.String(), "sesame") || !strings.Contains(table.String(), "OTEL_EXPORTER_OTLP_HEADERS") {
		t.Errorf("the table shows what is secret:\n%s", table.String())
	}
}
