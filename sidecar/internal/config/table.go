package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
)

// Variable is one row of what `postamt config` prints.
type Variable struct {
	Name, Default, Value, Help string
	field                      string // its name in the struct
}

// WriteTable prints every variable with its default, its value in force and what it is
// for.
func (c *Config) WriteTable(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "VARIABLE\tDEFAULT\tVALUE\tWHAT IT IS FOR")
	for _, v := range c.variables() {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", v.Name, v.Default, v.Value, v.Help)
	}
	return tw.Flush()
}

func (c *Config) variables() []Variable {
	return walk(reflect.ValueOf(*c), "")
}

func walk(v reflect.Value, prefix string) []Variable {
	var out []Variable
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if p, ok := field.Tag.Lookup("envPrefix"); ok {
			out = append(out, walk(v.Field(i), prefix+p)...)
			continue
		}
		tag, ok := field.Tag.Lookup("env")
		if !ok {
			continue // no setting
		}
		name, _, _ := strings.Cut(tag, ",")
		out = append(out, Variable{
			Name: prefix + name, Default: field.Tag.Get("envDefault"), Help: field.Tag.Get("help"),
			Value: format(v.Field(i)), field: field.Name,
		})
	}
	return out
}

// format writes a value as the variable would be set.
func format(v reflect.Value) string {
	if v.Kind() != reflect.Slice {
		return fmt.Sprint(v.Interface())
	}
	parts := make([]string, v.Len())
	for i := range parts {
		parts[i] = fmt.Sprint(v.Index(i).Interface())
	}
	return strings.Join(parts, ",")
}
