package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

// reader reads a request's JSON strictly and collects what is wrong with it, so that a client
// hears of all its mistakes at once.
type reader struct {
	mistakes []string
}

// maxMistakes is how many a client is told of.
const maxMistakes = 20

func (r *reader) mistake(format string, args ...any) {
	if len(r.mistakes) < maxMistakes {
		r.mistakes = append(r.mistakes, fmt.Sprintf(format, args...))
	}
}

// error is nil when there is no mistake.
func (r *reader) error(op string) error {
	if len(r.mistakes) == 0 {
		return nil
	}
	return event.Errorf(event.Unprocessable, 0, op, "%s", strings.Join(r.mistakes, "; "))
}

// members are what an object may have: by name, what reads the value.
type members map[string]func(v value)

// value is a member's, with its name as a client would write it: retry.initial.
type value struct {
	*reader
	name string
	text json.RawMessage
}

// document reads a body that is one object. An error means that it is no JSON.
func (r *reader) document(body []byte, op string, known members) error {
	if !utf8.Valid(body) {
		return event.Errorf(event.Invalid, 0, op, "the body is not UTF-8")
	}
	var text json.RawMessage
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&text); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return event.Errorf(event.Invalid, 0, op, "the body is not JSON at byte %d: %v", syntax.Offset, err)
		}
		return event.Errorf(event.Invalid, 0, op, "the body is not JSON: it ends too soon")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return event.Errorf(event.Invalid, 0, op, "there is more in the body after its JSON, at byte %d", d.InputOffset())
	}
	value{r, "", text}.object(known)
	return nil
}

// object reads the members of an object, each of which may be there once.
func (v value) object(known members) {
	v.each(func(m value) {
		if read, ok := known[m.name[len(v.prefix()):]]; ok {
			read(m)
		} else {
			v.mistake("there is no member %s here; known are %s", quoted(m.name), strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	})
}

// prefix is what the names of the members of an object begin with.
func (v value) prefix() string {
	if v.name == "" {
		return ""
	}
	return v.name + "."
}

// each calls member for each member of an object.
func (v value) each(member func(m value)) {
	d := json.NewDecoder(bytes.NewReader(v.text))
	if first, _ := d.Token(); first != json.Delim('{') {
		v.wrong("an object")
		return
	}
	seen := make(map[string]bool)
	for d.More() {
		key, _ := d.Token() // the text is JSON, so a name is a string
		name, _ := key.(string)
		m := value{v.reader, v.prefix() + name, nil}
		_ = d.Decode(&m.text)
		if seen[name] {
			v.mistake("%s is there twice; leave one of them out", quoted(m.name))
			continue
		}
		seen[name] = true
		member(m)
	}
}

// wrong says that a value is not what it must be.
func (v value) wrong(want string) {
	name := v.name
	if name == "" {
		name = "the body"
	}
	v.mistake("%s is %s; it must be %s", name, shown(v.text), want)
}

// maxShown is how much of a text that is wrong a message shows, in bytes.
const maxShown = 60

// shown is a value as a message shows it.
func shown(text []byte) string {
	switch text[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	}
	return shorten(string(text))
}

func shorten(text string) string {
	if len(text) > maxShown {
		return strings.ToValidUTF8(text[:maxShown], "") + "…"
	}
	return text
}

func quoted(text string) string { return strconv.Quote(shorten(text)) }

// string reads a text; ok is false, and the mistake noted, where it is none.
func (v value) string(want string) (text string, ok bool) {
	if v.text[0] != '"' || json.Unmarshal(v.text, &text) != nil {
		v.wrong(want)
		return "", false
	}
	return text, true
}

// strings reads an array of texts.
func (v value) strings(want string) (out []string, ok bool) {
	var all []*string
	if v.text[0] != '[' || json.Unmarshal(v.text, &all) != nil || slices.Contains(all, nil) {
		v.wrong(want)
		return nil, false
	}
	for _, s := range all {
		out = append(out, *s)
	}
	return out, true
}

// integer reads a whole number within bounds.
func (v value) integer(least, most int, into *int) {
	var n int
	if json.Unmarshal(v.text, &n) != nil || v.text[0] == 'n' || n < least || n > most {
		v.wrong(fmt.Sprintf("a whole number from %d to %d", least, most))
		return
	}
	*into = n
}

// choice reads one of a few words.
func (v value) choice(into *string, words ...string) {
	var text string
	if v.text[0] != '"' || json.Unmarshal(v.text, &text) != nil || !slices.Contains(words, text) {
		v.wrong(strings.Join(words, ", "))
		return
	}
	*into = text
}
