package config

import (
	"strings"
	"testing"
	"time"
)

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := Load(nil)
	if err != nil {
		t.Fatalf("Load of an empty environment: %v", err)
	}
	if cfg.HTTPAddress != ":8080" || cfg.RequestTimeout != 30*time.Second || cfg.Limits.BodyBytes != 1<<20 {
		t.Errorf("defaults are not those of the tags: %+v", cfg)
	}
}

func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		environ map[string]string
		want    []string
	}{
		"unreadable values": {
			map[string]string{"REQUEST_TIMEOUT": "soon", "MAX_RECORDS": "many", "LOG_LEVEL": "LOUD", "TRUSTED_PROXIES": "everyone"},
			[]string{"REQUEST_TIMEOUT: ", "MAX_RECORDS: ", "LOG_LEVEL: ", "TRUSTED_PROXIES: "},
		},
		"values out of range": {
			map[string]string{"HTTP_ADDRESS": "8080", "KAFKA_BOOTSTRAP_SERVERS": "kafka", "LOG_FORMAT": "xml", "MAX_RECORDS": "0", "MAX_BATCH_BYTES": "1", "SHUTDOWN_TIMEOUT": "0s"},
			[]string{
				`HTTP_ADDRESS is "8080"; it must be host:port`, `KAFKA_BOOTSTRAP_SERVERS has "kafka"`, `LOG_FORMAT is "xml"; it must be json or text`,
				"MAX_RECORDS is 0; it must be positive", "MAX_BATCH_BYTES is 1; it must not be below MAX_BODY_BYTES, 1048576", "SHUTDOWN_TIMEOUT is 0s; it must be positive",
			},
		},
		"where deliveries may go": {
			map[string]string{"WEBHOOK_ALLOW": "10.0.0.0/33", "WEBHOOK_DENY": "http://webshop", "WEBHOOK_EDGE": "eth0:1", "WEBHOOK_PROXY": "proxy:3128"},
			[]string{
				`WEBHOOK_ALLOW: "10.0.0.0/33" is neither a network`, `WEBHOOK_DENY: "http://webshop" is neither a network`, `WEBHOOK_EDGE has "eth0:1"; it must be auto`, `WEBHOOK_PROXY is "proxy:3128"; it must be the URL of a proxy`,
			},
		},
		"what deliveries hold": {
			map[string]string{"DELIVERY_WINDOW_RECORDS": "16385", "DELIVERY_WINDOW_BYTES": "0", "DELIVERY_MEMORY_BYTES": "-1", "DELIVERY_STOP_TIMEOUT": "0s"},
			[]string{"DELIVERY_WINDOW_RECORDS is 16385; it must be between 1 and 16384", "DELIVERY_WINDOW_BYTES is 0; it must be positive", "DELIVERY_MEMORY_BYTES is -1; it must be positive", "DELIVERY_STOP_TIMEOUT is 0s; it must be positive"},
		},
		"traces": {
			map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_HEADERS": "key", "OTEL_RESOURCE_ATTRIBUTES": "a=%zz",
				"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5", "OTEL_EXPORTER_OTLP_TIMEOUT": "0", "OTEL_BSP_MAX_QUEUE_SIZE": "-1", "OTEL_BSP_SCHEDULE_DELAY": "0", "OTEL_SPAN_LINK_COUNT_LIMIT": "-1",
			},
			[]string{
				`OTEL_EXPORTER_OTLP_ENDPOINT is "collector:4318"; it must be the URL of a collector that takes OTLP over HTTP, such as http://collector:4318, or none`, `OTEL_EXPORTER_OTLP_PROTOCOL is "grpc"; it must be http/protobuf`,
				"OTEL_EXPORTER_OTLP_HEADERS must be name=value", `OTEL_RESOURCE_ATTRIBUTES is "a=%zz"; it must be name=value`, `OTEL_TRACES_SAMPLER_ARG is "1.5"; it must be a number from 0 to 1`,
				"OTEL_EXPORTER_OTLP_TIMEOUT is 0; it must be positive", "OTEL_BSP_MAX_QUEUE_SIZE is -1; it must be positive", "OTEL_BSP_SCHEDULE_DELAY is 0; it must be positive", "OTEL_SPAN_LINK_COUNT_LIMIT is -1; it must not be negative",
			},
		},
		"where traces go": {
			map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://user:secret@collector:4318/", "OTEL_TRACES_SAMPLER": "jaeger_remote"},
			[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT has a user or a password", `OTEL_TRACES_SAMPLER is "jaeger_remote"; it must be one of parentbased_traceidratio, `},
		},
		"what is for traces alone": {
			map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "yes", "OTEL_TRACES_EXPORTER": "otlp,console",
				"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "key", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "-1",
			},
			[]string{
				`OTEL_SDK_DISABLED is "yes"; it must be true or false`, `OTEL_TRACES_EXPORTER is "otlp,console"; it must be otlp or none`, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is "grpc"; it must be http/protobuf`,
				"OTEL_EXPORTER_OTLP_TRACES_HEADERS must be name=value", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is -1; it must not be negative",
			},
		},
		"the demo": {
			map[string]string{"DEMO_RATE": "-1", "DEMO_CARDS": "0", "DEMO_API": "localhost:80", "DEMO_ADDRESS": "8090"},
			[]string{"DEMO_RATE is -1; it must be between 0 and 5000", "DEMO_CARDS is 0; it must be between 1 and 1000", `DEMO_API is "localhost:80"; it must be a URL that begins with http://`, `DEMO_ADDRESS is "8090"; it must be host:port`},
		},
		"the containers": {
			map[string]string{"CONTAINERS_ENGINE": "unix:///var/run/docker.sock", "CONTAINERS_INTERVAL": "0s", "MAX_CONTAINERS": "0"},
			[]string{`CONTAINERS_ENGINE is "unix:///var/run/docker.sock"; it must be a URL that begins with http://`, "CONTAINERS_INTERVAL is 0s; it must be positive", "MAX_CONTAINERS is 0; it must be positive"},
		},
		"both": {
			map[string]string{"REQUEST_TIMEOUT": "soon", "LOG_FORMAT": "xml"},
			[]string{"REQUEST_TIMEOUT: ", `LOG_FORMAT is "xml"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(tc.environ)
			if err == nil {
				t.Fatal("Load accepted it")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q:\n%v", want, err)
				}
			}
			if got := strings.Count(err.Error(), "\n") + 1; got != len(tc.want) {
				t.Errorf("%d mistakes reported, want %d:\n%v", got, len(tc.want), err)
			}
		})
	}
}

func TestTableHasEveryVariableWithItsValue(t *testing.T) {
	cfg, err := Load(map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "a:1, b:2", "WEBHOOK_ALLOW": "10.1.0.0/16, *.Example.com"}) // the space is not of the name
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := cfg.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "a:1,b:2") || !strings.Contains(b.String(), " 10.1.0.0/16,*.example.com ") {
		t.Errorf("the values in force are not in the table:\n%s", b.String())
	}
	fields := make(map[string]string)
	for _, v := range cfg.variables() {
		// The library's parse errors name the field alone: explain needs it to be unique.
		if other, taken := fields[v.field]; taken {
			t.Errorf("%s and %s are both the field %s", other, v.Name, v.field)
		}
		fields[v.field] = v.Name
		if v.Name == "" || v.Help == "" || v.Default == "" {
			t.Errorf("%s (%q) lacks a name, a default or an explanation", v.field, v.Name)
		}
	}
}
