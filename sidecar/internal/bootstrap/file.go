package bootstrap

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"postamt/sidecar/internal/event"
)

// Topic is one topic that is to exist.
type Topic struct {
	Name        string
	Partitions  int
	Replication int               // 0: the configured factor
	Configs     map[string]string // Kafka's names and values

	// DeadLettersOf names the topic whose dead letters this one keeps. Its max.message.bytes
	// is found when the source's is known.
	DeadLettersOf string

	line int // in the file; 0 for our own
}

const (
	deadLettersSuffix    = ".dead-letters"
	deadLettersRetention = 30 * 24 * time.Hour

	maxNameLen     = 249    // Kafka's limit: a name is a folder's, with a partition number
	maxPartitions  = 10_000 // far above any use of one topic; a slip of the key costs a broker
	maxReplication = 1_000

	configRetention = "retention.ms"
	configMaxBytes  = "max.message.bytes"
	minMaxBytes     = 1_048_588 // Kafka's default
	configInSync    = "min.insync.replicas"
	configCleanup   = "cleanup.policy"
)

var (
	wordPattern = regexp.MustCompile(`^[a-z0-9-]+$`)
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)
)

// ownTopics are what Postamt keeps its own state in. They are compacted, since the last
// record of a key is the state of that key, and have one partition, since one order of all
// records is what makes compare-and-set possible. Every replica reads them whole when it starts,
// and Kafka compacts only segments that are full: so those are small.
func ownTopics() []Topic {
	compacted := func(name string) Topic {
		return Topic{Name: name, Partitions: 1, Configs: map[string]string{configCleanup: "compact", "segment.bytes": "16777216"}}
	}
	return []Topic{compacted("_postamt.sessions"), compacted("_postamt.subscriptions")}
}

// Parse reads a topics file and returns every topic that is to exist, Postamt's own among
// them, in order of the name. An error lists all mistakes, each with its line and what would
// be right. name is what the messages call the file.
func Parse(name string, data []byte) ([]Topic, error) {
	p := &parser{name: name}
	topics := p.file(data)
	p.checkNames(topics)
	if err := p.err(); err != nil {
		return nil, err
	}
	slices.SortFunc(topics, func(a, b Topic) int { return cmp.Compare(a.Name, b.Name) })
	return topics, nil
}

// parser walks YAML nodes, not decoded values: only nodes know their lines, and a walk finds
// all mistakes where a decoder stops or speaks of Go types.
type parser struct {
	name     string
	mistakes []mistake
}

type mistake struct {
	line int
	text string
}

func (p *parser) mistake(line int, format string, args ...any) {
	p.mistakes = append(p.mistakes, mistake{line, fmt.Sprintf(format, args...)})
}

func (p *parser) err() error {
	slices.SortFunc(p.mistakes, func(a, b mistake) int { return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.text, b.text)) })
	var errs []error
	for _, m := range slices.Compact(p.mistakes) { // an anchor that is used twice is wrong once
		errs = append(errs, fmt.Errorf("%s:%d: %s", p.name, m.line, m.text))
	}
	return errors.Join(errs...)
}

func (p *parser) file(data []byte) []Topic {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		p.mistake(1, "the file is empty; a file that is to declare nothing says so: topics: {}")
		return nil
	} else if err != nil {
		p.mistake(yamlLine(err), "this is not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		return nil
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		p.mistake(max(second.Line, yamlLine(err)), "a second document begins here; one file is one document")
	}

	var environments, events, topics []entry
	for _, e := range p.mapping(doc.Content[0], "the file", "environments", "events", "topics") {
		switch e.key {
		case "environments":
			environments = p.environments(e.value)
		case "events":
			events = p.mapping(e.value, "events")
		case "topics":
			topics = p.mapping(e.value, "topics")
		}
	}
	if len(events) > 0 && len(environments) == 0 && len(p.mistakes) == 0 {
		p.mistake(events[0].line, "events need environments, since each becomes one topic in each; add, for example: environments: [test, prod]")
	}
	all := ownTopics()
	for _, e := range events {
		if !wordPattern.MatchString(e.key) {
			p.mistake(e.line, "event %q: a name has a-z, 0-9 and '-' only", e.key)
		}
		d := p.declaration(e)
		for _, env := range environments {
			all = append(all, d.topics(env.key+"."+e.key)...)
		}
	}
	for _, e := range topics {
		all = append(all, p.declaration(e).topics(e.key)...)
	}
	return all
}

// entry is one key of a mapping with its value, aliases followed.
type entry struct {
	key   string
	line  int
	value *yaml.Node
}

// mapping returns a mapping's entries in order, those that a merge key (<<) brings in last.
// Nothing at all is an empty mapping. With known, other keys are mistakes.
func (p *parser) mapping(n *yaml.Node, what string, known ...string) []entry {
	var entries []entry
	seen := make(map[string]int)
	var walk func(n *yaml.Node, merged int)
	walk = func(n *yaml.Node, merged int) {
		n = follow(n)
		switch {
		case n.ShortTag() == "!!null":
			return
		case n.Kind != yaml.MappingNode:
			p.mistake(n.Line, "%s must be a mapping (key: value), not %s", what, kindOf(n))
			return
		case merged > 8:
			p.mistake(n.Line, "%s merges (<<) mappings more than 8 deep", what)
			return
		}
		var merge *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := follow(n.Content[i]), n.Content[i+1]
			line, before := seen[key.Value]
			switch {
			case key.ShortTag() == "!!merge" && merge != nil:
				p.mistake(key.Line, "%s has << twice; merge one mapping", what) // more would multiply, level by level
			case key.ShortTag() == "!!merge":
				merge = value
			case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!null":
				p.mistake(key.Line, "%s has a key that is %s; keys are plain words", what, kindOf(key))
			case before && merged == 0:
				p.mistake(key.Line, "%s has %s twice; the first is in line %d", what, key.Value, line)
			case before: // what is merged in gives way
			case len(known) > 0 && !slices.Contains(known, key.Value):
				p.mistake(key.Line, "%s has no %q; it can have %s", what, key.Value, strings.Join(known, ", "))
			default:
				seen[key.Value] = key.Line
				entries = append(entries, entry{key.Value, key.Line, follow(value)})
			}
		}
		if merge != nil {
			walk(merge, merged+1)
		}
	}
	walk(n, 0)
	return entries
}

// follow returns what an alias stands for. An alias never stands for another one.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.ShortTag() == "!!null":
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

func (p *parser) environments(n *yaml.Node) []entry {
	if n.Kind != yaml.SequenceNode {
		p.mistake(n.Line, "environments must be a list such as [test, prod], not %s", kindOf(n))
		return nil
	}
	var environments []entry
	for _, item := range n.Content {
		item = follow(item)
		switch {
		case item.Kind != yaml.ScalarNode || !wordPattern.MatchString(item.Value):
			p.mistake(item.Line, "environment %s: a name has a-z, 0-9 and '-' only", kindOf(item))
		case slices.ContainsFunc(environments, func(e entry) bool { return e.key == item.Value }):
			p.mistake(item.Line, "environment %s is listed twice", item.Value)
		default:
			environments = append(environments, entry{key: item.Value, line: item.Line})
		}
	}
	return environments
}

// declaration is what the file says of an event or a topic.
type declaration struct {
	line        int
	partitions  int
	replication int
	configs     map[string]string
	deadLetters bool
}

// topics returns the topic that is declared, under its name, and the one for its dead letters.
func (d declaration) topics(name string) []Topic {
	t := Topic{Name: name, Partitions: d.partitions, Replication: d.replication, Configs: d.configs, line: d.line}
	if !d.deadLetters {
		return []Topic{t}
	}
	letters := t
	letters.Name, letters.DeadLettersOf = name+deadLettersSuffix, name
	letters.Configs = map[string]string{configRetention: millis(deadLettersRetention)}
	if n, ok := d.configs[configInSync]; ok { // kept as safely as the records were
		letters.Configs[configInSync] = n
	}
	return []Topic{t, letters}
}

func (p *parser) declaration(e entry) declaration {
	d := declaration{line: e.line, configs: make(map[string]string)}
	saysPartitions := false
	for _, f := range p.mapping(e.value, e.key, "partitions", "retention", "replication", "dead_letters", "configs") {
		switch f.key {
		case "partitions":
			d.partitions, saysPartitions = p.number(f, maxPartitions), true
		case "replication":
			d.replication = p.number(f, maxReplication)
		case "retention":
			d.configs[configRetention] = p.retention(f)
		case "dead_letters":
			if f.value.ShortTag() != "!!bool" || f.value.Decode(&d.deadLetters) != nil {
				p.mistake(f.value.Line, "dead_letters is %s; it must be true or false", kindOf(f.value))
			}
		case "configs":
			p.configs(f, &d)
		}
	}
	if !saysPartitions {
		p.mistake(e.line, "%s needs partitions, such as partitions: 3; their number can be raised later, never lowered", e.key)
	}
	return d
}

func (p *parser) number(f entry, most int) int {
	var n int
	if f.value.ShortTag() != "!!int" || f.value.Decode(&n) != nil || n < 1 || n > most {
		p.mistake(f.value.Line, "%s is %s; it must be a whole number from 1 to %d", f.key, kindOf(f.value), most)
	}
	return n
}

// retention reads a time such as 7d or 1d12h, or forever, and returns milliseconds.
func (p *parser) retention(f entry) string {
	if f.value.Value == "forever" {
		return "-1"
	}
	d, err := parseDays(f.value.Value)
	if f.value.Kind != yaml.ScalarNode || err != nil || d < time.Millisecond {
		p.mistake(f.value.Line, "retention is %s; it must be a time such as 7d, 36h or 1d12h (w, d, h, m, s, ms), or forever", kindOf(f.value))
	}
	return millis(d)
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

var dayPattern = regexp.MustCompile(`^(?:(\d{1,4})w)?(?:(\d{1,5})d)?(.*)$`)

// parseDays is time.ParseDuration with weeks and days of 24 hours before the rest.
func parseDays(s string) (time.Duration, error) {
	m := dayPattern.FindStringSubmatch(s)
	if m == nil || s == "" {
		return 0, fmt.Errorf("%q is not a time", s)
	}
	weeks, _ := strconv.Atoi(m[1]) // empty or digits: the pattern says so
	days, _ := strconv.Atoi(m[2])
	var rest time.Duration
	if m[3] != "" {
		var err error
		if rest, err = time.ParseDuration(m[3]); err != nil {
			return 0, err
		}
	}
	d := time.Duration(weeks*7+days) * 24 * time.Hour
	if d < 0 || d+rest < d {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	return d + rest, nil
}

// configs reads Kafka's own settings. Kafka knows their names and values better than a list
// here would, and says so when the topic is made; what would only fail later is checked.
func (p *parser) configs(f entry, d *declaration) {
	for _, c := range p.mapping(f.value, "configs") {
		value := c.value.Value
		switch {
		case c.value.Kind != yaml.ScalarNode || c.value.ShortTag() == "!!null":
			p.mistake(c.line, "%s is %s; it must be one value", c.key, kindOf(c.value))
		case c.key == configRetention:
			p.mistake(c.line, "%s is set by retention, such as retention: 7d", c.key)
		case c.key == configMaxBytes:
			if n, err := strconv.Atoi(value); err != nil || n < minMaxBytes {
				p.mistake(c.line, "%s is %q; it must be a whole number from %d up: the producer sends batches of up to 1,000,000 bytes, and Kafka refuses one as a whole", c.key, value, minMaxBytes)
			}
		case c.key == configInSync:
			if n, err := strconv.Atoi(value); err != nil || n < 1 {
				p.mistake(c.line, "%s is %q; it must be a whole number from 1 up", c.key, value)
			}
		}
		d.configs[c.key] = value
	}
}

// checkNames finds what Kafka would refuse, or take for another topic.
func (p *parser) checkNames(topics []Topic) {
	seen := make(map[string]Topic)
	for _, t := range topics {
		if t.line > 0 {
			switch {
			case event.Own(t.Name):
				p.mistake(t.line, "topic %s: names that begin with _postamt. or __ are Postamt's and Kafka's own", t.Name)
			case !namePattern.MatchString(t.Name) || t.Name == "." || t.Name == "..":
				p.mistake(t.line, "topic %q: a name has a-z, A-Z, 0-9, '.', '_' and '-' only, and is not . or ..", t.Name)
			case len(t.Name) > maxNameLen:
				p.mistake(t.line, "topic %s… is %d characters long; Kafka takes %d", t.Name[:20], len(t.Name), maxNameLen)
			}
		}
		other, taken := seen[collisionKey(t.Name)]
		switch {
		case !taken:
			seen[collisionKey(t.Name)] = t
		case other.Name == t.Name:
			p.mistake(max(t.line, other.line), "topic %s is declared twice%s", t.Name, declaredAt(other, t))
		default:
			p.mistake(max(t.line, other.line), "topics %s and %s are one name to Kafka's metrics, which write '.' as '_'; Kafka refuses the second%s", other.Name, t.Name, declaredAt(other, t))
		}
	}
}

func declaredAt(a, b Topic) string {
	if a.line == b.line || min(a.line, b.line) == 0 {
		return ""
	}
	return fmt.Sprintf("; see line %d", min(a.line, b.line))
}

// collisionKey is the same for names that Kafka does not let exist beside each other.
func collisionKey(name string) string { return strings.ReplaceAll(name, ".", "_") }

var yamlLinePattern = regexp.MustCompile(`line (\d+)`)

// yamlLine finds the line that the library names only in the text of its error.
func yamlLine(err error) int {
	if err == nil {
		return 0
	}
	m := yamlLinePattern.FindStringSubmatch(err.Error())
	if m == nil {
		return 1
	}
	n, _ := strconv.Atoi(m[1])
	return n
}
