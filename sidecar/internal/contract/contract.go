// Package contract holds answers of the HTTP interface against sidecar/openapi.yaml: status,
// header, content type and body. Only tests import it.
package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// Contract is an OpenAPI document that answers are checked against.
type Contract struct {
	text []byte
	doc  *openapi3.T
	mux  *http.ServeMux // finds the path as the server does
}

// Load is the contract of this tree: the openapi.yaml in one of the folders above the
// test's.
var Load = sync.OnceValues(func() (*Contract, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "openapi.yaml"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return Parse(text)
	}
	return nil, errors.New("there is no openapi.yaml above the test's folder")
})

// Parse reads a document, and checks it and its examples.
func Parse(text []byte) (*Contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	c := &Contract{text: text, doc: doc, mux: http.NewServeMux()}
	for pattern := range doc.Paths.Map() {
		if pattern == "/" {
			pattern = "/{$}"
		}
		c.mux.Handle(pattern, http.NotFoundHandler())
	}
	return c, nil
}

// Text is the document that Load reads.
func Text() ([]byte, error) {
	c, err := Load()
	if err != nil {
		return nil, err
	}
	return c.text, nil
}

// Version is what the document says it describes.
func (c *Contract) Version() string { return c.doc.Info.Version }

// Operations lists the document's operations as "GET /topics/{topic}", in their order.
func (c *Contract) Operations() []string {
	var out []string
	for pattern, item := range c.doc.Paths.Map() {
		for method := range item.Operations() {
			out = append(out, method+" "+pattern)
		}
	}
	slices.Sort(out)
	return out
}

// Answer is what came of a request.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Cut says that the client has not read on to the end: of a sequence, the items are
	// checked that it has, and any other body is not.
	Cut bool
}

// Check returns why an answer is not what the document says, or nil. The error names the
// operation.
func (c *Contract) Check(method string, u *url.URL, a Answer) error {
	what := method + " " + u.Path
	pattern, item := c.find(u)
	var op *openapi3.Operation
	if item != nil {
		if op = item.GetOperation(method); op == nil && method == http.MethodHead {
			op = item.Get
		}
	}
	var err error
	switch {
	case item == nil:
		err = c.checkError(a, http.StatusNotFound, method)
	case op == nil || op == item.Get && a.Status == http.StatusMethodNotAllowed && method == http.MethodHead:
		methods := slices.Collect(maps.Keys(item.Operations()))
		if item.Get != nil && !strings.HasPrefix(u.Path, "/consumers/") && !strings.HasPrefix(u.Path, "/streams/") {
			methods = append(methods, http.MethodHead) // stands for GET
		}
		slices.Sort(methods)
		if allow := a.Header.Get("Allow"); allow != strings.Join(methods, ", ") {
			err = fmt.Errorf("Allow is %q; openapi.yaml has %v", allow, methods)
		}
		err = errors.Join(err, c.checkError(a, http.StatusMethodNotAllowed, method))
	default:
		what += " (" + op.OperationID + ")"
		err = c.checkAnswer(method, pattern, item, op, a)
	}
	if err != nil {
		return fmt.Errorf("%s was answered with %d, which is not as openapi.yaml has it: %w\n%v\n%.2000s", what, a.Status, err, a.Header, a.Body)
	}
	return nil
}

// find returns the path of the document that a request is for, as the server finds it.
func (c *Contract) find(u *url.URL) (pattern string, item *openapi3.PathItem) {
	trimmed := *u
	if u.Path != "/" {
		trimmed.Path, trimmed.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	}
	if trimmed.Path == "" {
		trimmed.Path = "/"
	}
	if escaped := trimmed.EscapedPath(); path.Clean(escaped) != escaped {
		return "", nil
	}
	_, pattern = c.mux.Handler(&http.Request{Method: http.MethodGet, URL: &trimmed})
	pattern = strings.TrimSuffix(pattern, "{$}")
	return pattern, c.doc.Paths.Value(pattern)
}

// checkError checks an error that belongs to no operation.
func (c *Contract) checkError(a Answer, status int, method string) error {
	var errs []error
	if a.Status != status {
		errs = append(errs, fmt.Errorf("the document has no such operation, which is a %d", status))
	}
	if a.Header.Get("X-Request-Id") == "" {
		errs = append(errs, errors.New("X-Request-Id is missing"))
	}
	if ct := a.Header.Get("Content-Type"); ct != "application/json" {
		errs = append(errs, fmt.Errorf("the Content-Type is %q", ct))
	}
	if method != http.MethodHead && !a.Cut {
		errs = append(errs, visit(c.doc.Components.Schemas["Error"], a.Body))
	}
	return errors.Join(errs...)
}

func (c *Contract) checkAnswer(method, pattern string, item *openapi3.PathItem, op *openapi3.Operation, a Answer) error {
	response := op.Responses.Status(a.Status)
	if response == nil {
		return errors.New("the document has no such status of this operation")
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			// Of HEAD the library checks nothing, and its header is a GET's.
			Request: &http.Request{Method: http.MethodGet},
			Route:   &routers.Route{Spec: c.doc, Path: pattern, PathItem: item, Method: method, Operation: op},
		},
		Status: a.Status, Header: a.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, ExcludeResponseBody: true},
	}
	if len(response.Value.Content) == 0 {
		if len(a.Body) > 0 {
			return errors.New("there is a body; the document has none")
		}
		return openapi3filter.ValidateResponse(context.Background(), in)
	}
	ct := a.Header.Get("Content-Type")
	media := response.Value.Content.Get(ct)
	if media == nil {
		return fmt.Errorf("the Content-Type is %q; the document has %v", ct, slices.Sorted(maps.Keys(response.Value.Content)))
	}
	lines, events := media.Extensions["x-item-schema"], media.Extensions["x-event-schemas"]
	if lines == nil && events == nil && !a.Cut && method != http.MethodHead {
		in.Options.ExcludeResponseBody = false
		in.SetBodyBytes(a.Body)
	}
	err := openapi3filter.ValidateResponse(context.Background(), in)
	switch {
	case err != nil || method == http.MethodHead:
		return err
	case lines != nil:
		return c.checkLines(lines, a)
	case events != nil:
		return c.checkEvents(events.(map[string]any), a)
	}
	return nil
}

// checkLines checks a body whose lines are items of one schema.
func (c *Contract) checkLines(ref any, a Answer) error {
	schema, err := c.schema(ref)
	if err != nil {
		return err
	}
	body, rest := cutLast(a.Body, "\n")
	if len(rest) > 0 && !a.Cut {
		return fmt.Errorf("the last line has no end: %.200s", rest)
	}
	for line := range bytes.Lines(body) {
		if err := visit(schema, bytes.TrimRight(line, "\r\n")); err != nil {
			return fmt.Errorf("line %.2000s: %w", line, err)
		}
	}
	return nil
}

// checkEvents checks Server-Sent Events: an id is a cursor, the data is of the schema that
// the document has for the event's name.
func (c *Contract) checkEvents(schemas map[string]any, a Answer) error {
	body, rest := cutLast(a.Body, "\n\n")
	if len(rest) > 0 && !a.Cut {
		return fmt.Errorf("the last event has no end: %.200s", rest)
	}
	for block := range bytes.SplitSeq(bytes.TrimSuffix(body, []byte("\n\n")), []byte("\n\n")) {
		fields := map[string]string{"event": "message"}
		for line := range strings.SplitSeq(string(block), "\n") {
			name, value, _ := strings.Cut(line, ":")
			switch name {
			case "", "id", "event", "data":
				fields[name] = strings.TrimPrefix(value, " ")
			default:
				return fmt.Errorf("an event has the line %.200q", line)
			}
		}
		if id, ok := fields["id"]; ok {
			if err := c.doc.Components.Schemas["Cursor"].Value.VisitJSON(id, openapi3.EnableJSONSchema2020()); err != nil {
				return fmt.Errorf("id %.200s: %w", id, err)
			}
		}
		data, ok := fields["data"]
		if !ok {
			continue
		}
		ref, ok := schemas[fields["event"]]
		if !ok {
			return fmt.Errorf("the document has no event %q", fields["event"])
		}
		schema, err := c.schema(ref)
		if err != nil {
			return err
		}
		if err := visit(schema, []byte(data)); err != nil {
			return fmt.Errorf("event %.2000s: %w", block, err)
		}
	}
	return nil
}

// schema finds the component that an extension's {"$ref": …} names.
func (c *Contract) schema(ref any) (*openapi3.SchemaRef, error) {
	m, _ := ref.(map[string]any)
	name, _ := m["$ref"].(string)
	schema := c.doc.Components.Schemas[strings.TrimPrefix(name, "#/components/schemas/")]
	if schema == nil {
		return nil, fmt.Errorf("openapi.yaml has no schema %v", ref)
	}
	return schema, nil
}

// cutLast cuts a body after its last end of an item.
func cutLast(body []byte, end string) (whole, rest []byte) {
	i := bytes.LastIndex(body, []byte(end))
	if i < 0 {
		return nil, body
	}
	return body[:i+len(end)], body[i+len(end):]
}

// visit checks one JSON value.
func visit(schema *openapi3.SchemaRef, text []byte) error {
	var value any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return schema.Value.VisitJSON(value, openapi3.EnableJSONSchema2020(), openapi3.VisitAsResponse())
}
