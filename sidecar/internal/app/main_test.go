package app_test

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"postamt/sidecar/internal/app"
)

func mainOf(t *testing.T, environ map[string]string, args ...string) (stdout string, err error) {
	t.Helper()
	var out bytes.Buffer
	err = app.Main(t.Context(), args, environ, nil, &out, io.Discard)
	return out.String(), err
}

func TestMainRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, tc := range []struct {
		args    []string
		environ map[string]string
		says    []string
	}{
		{nil, nil, []string{"no role is named", "usage: postamt ROLE"}},
		{[]string{"broker"}, nil, []string{`there is no role "broker"`, "usage: postamt ROLE"}},
		{[]string{"producer", "now"}, nil, []string{`producer takes no argument "now"`}},
		{[]string{"demo"}, nil, []string{"demo takes one argument, register or webshop"}},
		{[]string{"demo", "till"}, nil, []string{`the demo has no "till"; it has register and webshop`}},
		{[]string{"producer", "--plan"}, nil, []string{"plan"}},
		{[]string{"producer"}, map[string]string{"HTTP_ADDRESS": "x", "LOG_FORMAT": "xml"}, []string{"HTTP_ADDRESS is", "LOG_FORMAT is"}},
		{[]string{"consumer"}, map[string]string{"MAX_SESSIONS": "many", "KAFKA_REPLICATION_FACTOR": "x"}, []string{"MAX_SESSIONS", "KAFKA_REPLICATION_FACTOR"}},
	} {
		_, err := mainOf(t, tc.environ, tc.args...)
		for _, says := range tc.says {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("postamt %v: %v; want %q", tc.args, err, says)
			}
		}
	}
}

func TestMainAnswersWithoutKafka(t *testing.T) {
	if out, err := mainOf(t, nil, "version"); err != nil || strings.TrimSpace(out) != app.Version {
		t.Errorf("version prints %q, %v", out, err)
	}
	if out, err := mainOf(t, nil, "help"); err != nil || !strings.Contains(out, "bootstrap [--plan]") {
		t.Errorf("help prints %q, %v", out, err)
	}
	if _, err := mainOf(t, nil, "dev", "-h"); err != nil {
		t.Errorf("-h of a role: %v", err)
	}
}

// The names come from the source: a variable that config does not print fails this.
func TestConfigPrintsEveryVariable(t *testing.T) {
	out, err := mainOf(t, map[string]string{"MAX_SESSIONS": "77", "KAFKA_BOOTSTRAP_SERVERS": "one:1,two:2"}, "config")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../config/config.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range regexp.MustCompile(`env:"([A-Z_]+)(?:,[a-z]+)?" envDefault:"([^"]*)" help:"([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		n++
		if !regexp.MustCompile(`(?m)^[A-Z_]*` + m[1] + ` .*` + regexp.QuoteMeta(m[3]) + `$`).MatchString(out) {
			t.Errorf("%s is not printed with what it is for", m[1])
		}
	}
	if tags := strings.Count(string(source), ` env:"`) + strings.Count(string(source), "`env:\""); n < 25 || n != tags {
		t.Errorf("%d variables have a default and a help, of %d", n, tags)
	}
	for _, want := range []string{`(?m)^MAX_SESSIONS +1000 +77 `, `(?m)^KAFKA_BOOTSTRAP_SERVERS +localhost:9092 +one:1,two:2 `, `(?m)^HTTP_ADDRESS +:8080 +:8080 `} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("it does not print %s:\n%s", want, out)
		}
	}
}

func TestHealthcheckAsksItsOwnRole(t *testing.T) {
	p := startRole(t, app.Producer, clusterFor(t), nil)
	address := strings.TrimPrefix(p.api, "http://")
	_, port, _ := strings.Cut(address, ":")
	for _, listens := range []string{address, ":" + port, "0.0.0.0:" + port} {
		eventually(t, "healthcheck of "+listens+" succeeds", func() bool {
			_, err := mainOf(t, map[string]string{"HTTP_ADDRESS": listens}, "healthcheck")
			return err == nil
		})
	}
	p.stop()
	if err := <-p.ended; err != nil {
		t.Fatal(err)
	}
	if _, err := mainOf(t, map[string]string{"HTTP_ADDRESS": address}, "healthcheck"); err == nil {
		t.Error("healthcheck of a role that has ended succeeds")
	}
}
