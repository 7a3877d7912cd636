package restproxy

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"postamt/sidecar/internal/event"
)

// jsonDepth is how deep encoding/json lets values be nested.
const jsonDepth = 10_000

// checkRepeated refuses a member that is there twice, where it is one that into knows:
// encoding/json would merge the two into what nobody has sent. text is JSON that into was read
// from. What is below the members of into, such as a record's value, is the sender's own.
func checkRepeated(text []byte, into any) *event.Error {
	s := scanner{b: text}
	if where := s.repeated(shapeOf(reflect.TypeOf(into))); where != "" {
		return event.Errorf(event.Unprocessable, 0, op, "%s is there twice; leave one of them out", strings.TrimPrefix(where, "."))
	}
	return nil
}

// repeated reads a value of a shape and gives the path of the first member that is there twice:
// ".records[0].key".
func (s *scanner) repeated(sh *shape) (where string) {
	s.space()
	switch {
	case sh == nil || s.i == len(s.b):
	case s.b[s.i] == '[' && sh.element != nil:
		n := -1
		s.array(func() bool {
			n++
			if where = s.repeated(sh.element); where != "" {
				where = "[" + strconv.Itoa(n) + "]" + where
			}
			return where == "" && !s.failed
		})
		return where
	case s.b[s.i] == '{' && sh.element == nil:
		return s.repeatedMember(sh.members)
	}
	s.skip(scanDepth - jsonDepth)
	return ""
}

func (s *scanner) repeatedMember(members []member) string {
	var seen uint64
	s.i++
	for n := 0; !s.failed; n++ {
		s.space()
		if s.next('}') || n > 0 && !s.byte(',') {
			return ""
		}
		s.space()
		start := s.i
		s.string()
		i := indexOf(members, s.b[start:s.i])
		s.byte(':')
		if i < 0 {
			s.skip(scanDepth - jsonDepth)
			continue
		}
		if seen&(1<<i) != 0 {
			return "." + members[i].name
		}
		seen |= 1 << i
		if where := s.repeated(members[i].shape); where != "" {
			return "." + members[i].name + where
		}
	}
	return ""
}

// indexOf finds a member by its name in quotes as encoding/json does, whatever its case is.
func indexOf(members []member, quoted []byte) int {
	if len(quoted) < 2 {
		return -1
	}
	name := string(quoted[1 : len(quoted)-1])
	if strings.IndexByte(name, '\\') >= 0 {
		_ = json.Unmarshal(quoted, &name) // it is a string
	}
	return slices.IndexFunc(members, func(m member) bool { return strings.EqualFold(name, m.name) })
}

// shape is what a decoder knows of a value: an array's element, or an object's members. nil is a
// value that has neither.
type shape struct {
	element *shape
	members []member
}

type member struct {
	name  string
	shape *shape
}

var shapes sync.Map // reflect.Type to *shape

func shapeOf(t reflect.Type) *shape {
	if known, ok := shapes.Load(t); ok {
		return known.(*shape) //nolint:forcetypeassert // it holds no other
	}
	sh := newShape(t)
	shapes.Store(t, sh)
	return sh
}

func newShape(t reflect.Type) *shape {
	switch t.Kind() {
	case reflect.Pointer:
		return newShape(t.Elem())
	case reflect.Slice:
		if element := newShape(t.Elem()); element != nil {
			return &shape{element: element}
		}
	case reflect.Struct:
		sh := &shape{}
		for field := range t.Fields() {
			if field.Anonymous {
				sh.members = append(sh.members, newShape(field.Type).members...)
				continue
			}
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			sh.members = append(sh.members, member{name, newShape(field.Type)})
		}
		return sh
	}
	return nil
}
