package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/filter"
)

// What a subscription may be. Each bound is named in the error of who exceeds it.
const (
	maxTopics   = 100
	maxInFlight = 1024
	maxRate     = 1_000_000 // of the number before the unit
	minTimeout  = 100 * time.Millisecond
	maxTimeout  = 5 * time.Minute
	minRetry    = 10 * time.Millisecond
	maxRetry    = 24 * time.Hour
	maxAttempts = 1000
	minGiveUp   = time.Second
	maxGiveUp   = 365 * 24 * time.Hour
	// Standard Webhooks wants from 24 to 64 bytes.
	minSecretBytes = 24
	maxSecretBytes = 64
	secretBytes    = 32 // of a new one
)

// Where a subscription begins, beside a time.
const (
	fromLatest   = "latest"
	fromEarliest = "earliest"
)

// Settings are what a client says of a subscription. What it leaves out has its default.
type Settings struct {
	Topics      []string
	URL         string
	From        string // latest, earliest or RFC 3339; "" leaves it as it is, or latest
	Filter      string // "" wants every record
	Ordering    event.Ordering
	MaxInFlight int
	RateLimit   string // as 50/s; "": none
	Timeout     time.Duration
	Structured  bool
	Headers     map[string]*string // a nil value leaves the one that there is
	Retry       event.Retry
	DeadLetters string // "": <topic>.dead-letters of each topic
	Secret      []byte // nil leaves those that there are, or makes one
	mistakes    []string
}

const opDecode = "subscription"

// DecodeSettings reads the body of a PUT. Its error is of what is not JSON; what else is wrong is
// told by Put, together with what only Kafka knows.
func DecodeSettings(body []byte) (Settings, error) {
	s := Settings{
		Ordering: event.OrderByKey, MaxInFlight: 64, Timeout: 15 * time.Second,
		Retry: event.Retry{Initial: time.Second, Max: 5 * time.Minute, MaxAttempts: 8, GiveUpAfter: 96 * time.Hour},
	}
	var r reader
	err := r.document(body, opDecode, members{
		"topics": func(v value) {
			s.Topics, _ = v.strings("an array of topics' names")
			if len(s.Topics) > maxTopics {
				v.mistake("topics has %d names; it may have %d", len(s.Topics), maxTopics)
			}
			for i, topic := range s.Topics {
				if slices.Contains(s.Topics[:i], topic) {
					v.mistake("topics has %s twice; leave one of them out", quoted(topic))
				}
			}
		},
		"url": func(v value) {
			s.URL, _ = v.string("a URL, such as http://webshop:8080/vouchers")
		},
		"from":          func(v value) { s.From = v.from() },
		"filter":        func(v value) { s.Filter = v.filter() },
		"ordering":      func(v value) { v.choice((*string)(&s.Ordering), "key", "partition", "none") },
		"max_in_flight": func(v value) { v.integer(1, maxInFlight, &s.MaxInFlight) },
		"rate_limit":    func(v value) { s.RateLimit = v.rate() },
		"timeout":       func(v value) { v.duration(minTimeout, maxTimeout, &s.Timeout) },
		"format": func(v value) {
			format := formatBinary
			v.choice(&format, formatBinary, formatStructured)
			s.Structured = format == formatStructured
		},
		"headers": func(v value) { s.Headers = v.headers() },
		"retry": func(v value) {
			v.object(members{
				"initial":      func(v value) { v.duration(minRetry, maxRetry, &s.Retry.Initial) },
				"max":          func(v value) { v.duration(minRetry, maxRetry, &s.Retry.Max) },
				"max_attempts": func(v value) { v.integer(1, maxAttempts, &s.Retry.MaxAttempts) },
				"give_up_after": func(v value) {
					if string(v.text) == `"0s"` { // never
						s.Retry.GiveUpAfter = 0
					} else {
						v.duration(minGiveUp, maxGiveUp, &s.Retry.GiveUpAfter)
					}
				},
			})
		},
		"dead_letters": func(v value) {
			if s.DeadLetters, _ = v.string("a topic's name"); s.DeadLetters == "" && v.text[0] == '"' {
				v.wrong("a topic's name")
			}
		},
		"secret": func(v value) { s.Secret = v.secret() },
	})
	if err != nil {
		return s, err
	}
	if len(s.Topics) == 0 && !r.has("topics") {
		r.mistake(`topics is missing; it must name at least one topic`)
	}
	if s.URL == "" && !r.has("url") {
		r.mistake(`url is missing; it must be where records are to go, such as http://webshop:8080/vouchers`)
	}
	if s.Retry.Max < s.Retry.Initial {
		r.mistake("retry.max is %s; it must not be below retry.initial, %s", durationText(s.Retry.Max), durationText(s.Retry.Initial))
	}
	s.mistakes = r.mistakes
	return s, nil
}

// has tells whether something has been said of a member already.
func (r *reader) has(name string) bool {
	return slices.ContainsFunc(r.mistakes, func(m string) bool { return strings.HasPrefix(m, name+" ") })
}

// Words of "format".
const (
	formatBinary     = "binary"
	formatStructured = "structured"
)

func (v value) from() string {
	const want = "latest, earliest or a time as RFC 3339 has it"
	text, ok := v.string(want)
	if _, err := time.Parse(time.RFC3339, text); ok && err != nil && text != fromLatest && text != fromEarliest {
		v.wrong(want)
		return ""
	}
	return text
}

func (v value) filter() string {
	text, ok := v.string("an expression in CEL, such as data.amount > 50")
	if !ok {
		return ""
	}
	if _, err := filter.Compile(text); err != nil {
		v.mistake("%s", messageOf(err))
	}
	return text
}

var rates = regexp.MustCompile(`^([1-9][0-9]{0,6})/([smh])$`)

// perSecond is a rate in attempts a second.
func perSecond(rate string) (float64, bool) {
	m := rates.FindStringSubmatch(rate)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	seconds := map[string]float64{"s": 1, "m": 60, "h": 3600}[m[2]]
	return float64(n) / seconds, err == nil && n <= maxRate
}

func (v value) rate() string {
	want := fmt.Sprintf("a number from 1 to %d with /s, /m or /h, such as 50/s", maxRate)
	text, ok := v.string(want)
	if _, right := perSecond(text); ok && !right {
		v.wrong(want)
		return ""
	}
	return text
}

// durations are what Go writes, of what it reads.
var durations = regexp.MustCompile(`^([0-9]{1,12}(ms|s|m|h)){1,4}$`)

func (v value) duration(least, most time.Duration, into *time.Duration) {
	want := fmt.Sprintf("a duration from %s to %s, such as 15s", durationText(least), durationText(most))
	text, ok := v.string(want)
	if !ok {
		return
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most || !durations.MatchString(text) {
		v.wrong(want)
		return
	}
	*into = d
}

// durationText is shorter than Go's, 5m for 5m0s, and has no fractions.
func durationText(d time.Duration) string {
	if d%time.Second != 0 {
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (v value) headers() map[string]*string {
	out := make(map[string]*string)
	v.each(func(m value) {
		name := m.name[len(v.prefix()):]
		switch m.text[0] {
		case 'n':
			out[name] = nil
		case '"':
			text := new(string)
			_ = json.Unmarshal(m.text, text)
			out[name] = text
		default: // not shown: it is a secret, most likely
			v.mistake("%s is no text; it must be one, or null to leave it as it is", quoted(m.name))
		}
	})
	return out
}

// secretPrefix begins a secret as people see it.
const secretPrefix = "whsec_"

// SecretText is a secret as its receiver needs it.
func SecretText(key []byte) string { return secretPrefix + base64.StdEncoding.EncodeToString(key) }

// secret never shows in a mistake what it has read.
func (v value) secret() []byte {
	var text string
	if v.text[0] == '"' {
		_ = json.Unmarshal(v.text, &text)
	}
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(key) < minSecretBytes || len(key) > maxSecretBytes || strings.ContainsAny(encoded, "\r\n") {
		v.mistake("%s is not one; it must be %s and from %d to %d bytes in base64, or left out", v.name, secretPrefix, minSecretBytes, maxSecretBytes)
		return nil
	}
	return key
}

// DecodeSecret reads the body of a rotation: nothing, or {"secret": …}. nil asks for a new one.
func DecodeSecret(body []byte) (secret []byte, err error) {
	if len(body) == 0 {
		return nil, nil
	}
	var r reader
	if err := r.document(body, "secret", members{"secret": func(v value) { secret = v.secret() }}); err != nil {
		return nil, err
	}
	return secret, r.error("secret")
}

// DecodeReplay reads the body of a replay: {"to": …}.
func DecodeReplay(body []byte) (to string, err error) {
	var r reader
	if err := r.document(body, "replay", members{"to": func(v value) { to = v.from() }}); err != nil {
		return "", err
	}
	if to == "" && len(r.mistakes) == 0 {
		r.mistake("to is missing; it must be latest, earliest or a time as RFC 3339 has it")
	}
	return to, r.error("replay")
}

// DecodePlace reads the body of a skip: {"topic", "partition", "offset"}.
func DecodePlace(body []byte) (event.Position, error) {
	var r reader
	topic, partition, offset := "", -1, int64(-1)
	err := r.document(body, "skip", members{
		"topic":     func(v value) { topic, _ = v.string("a topic's name") },
		"partition": func(v value) { v.integer(0, 1<<31-1, &partition) },
		"offset": func(v value) {
			if json.Unmarshal(v.text, &offset) != nil || v.text[0] == 'n' || offset < 0 {
				v.wrong("a whole number from 0 up")
			}
		},
	})
	if err != nil {
		return event.Position{}, err
	}
	if len(r.mistakes) == 0 && (topic == "" || partition < 0 || offset < 0) {
		r.mistake("topic, partition and offset must all be there: they say which record is skipped")
	}
	at := event.TopicPartition{Topic: topic, Partition: int32(partition)} //nolint:gosec // it has 31 bits
	return event.Position{TopicPartition: at, Offset: offset}, r.error("skip")
}

// settingsJSON is Settings as a PUT has them, without what may not be read.
type settingsJSON struct {
	Topics      []string           `json:"topics"`
	URL         string             `json:"url"`
	From        string             `json:"from"`
	Filter      string             `json:"filter,omitempty"`
	Ordering    event.Ordering     `json:"ordering"`
	MaxInFlight int                `json:"max_in_flight"`
	RateLimit   string             `json:"rate_limit,omitempty"`
	Timeout     string             `json:"timeout"`
	Format      string             `json:"format"`
	Headers     map[string]*string `json:"headers,omitempty"`
	Retry       retryJSON          `json:"retry"`
	DeadLetters string             `json:"dead_letters,omitempty"`
}

type retryJSON struct {
	Initial     string `json:"initial"`
	Max         string `json:"max"`
	MaxAttempts int    `json:"max_attempts"`
	GiveUpAfter string `json:"give_up_after"`
}

// MarshalJSON writes what a PUT would have to say to leave a subscription as it is: of headers
// the names, with null for their values, and no secret.
func (s Settings) MarshalJSON() ([]byte, error) {
	out := settingsJSON{
		Topics: s.Topics, URL: s.URL, From: s.From, Filter: s.Filter, Ordering: s.Ordering, MaxInFlight: s.MaxInFlight, RateLimit: s.RateLimit,
		Timeout: durationText(s.Timeout), Format: formatBinary, DeadLetters: s.DeadLetters,
		Retry: retryJSON{durationText(s.Retry.Initial), durationText(s.Retry.Max), s.Retry.MaxAttempts, durationText(s.Retry.GiveUpAfter)},
	}
	if s.Structured {
		out.Format = formatStructured
	}
	out.Headers = s.shown().Headers
	return json.Marshal(out)
}
