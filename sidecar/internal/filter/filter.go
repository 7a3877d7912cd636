// Package filter decides by an expression in CEL (cel.dev) whether a record is wanted. Streams
// and deliveries use the same expressions.
//
// An expression sees one record through these variables:
//
//	topic      string
//	partition  int
//	offset     int
//	timestamp  timestamp
//	key        string, or null when there is none or it is not UTF-8
//	headers    map of string to string; of a name that repeats the last one, "" for a null
//	data       the value read as JSON; null when it is not JSON, and when there is no value
//	type, source, subject, id, time
//	           the attributes of a CloudEvent: from the headers ce_type and so on, else the
//	           topic without its environment, "/topics/" and the topic, the key, the place and
//	           timestamp as one string, and the timestamp. subject may be null, as key may.
//
// Numbers in data are doubles, as CEL has it for JSON, but for whole numbers above 2^53 that
// an int or uint holds, which keep all their digits. Numbers of different types compare, and
// do not add: data.amount > 50, data.amount * 2.0 > 50.
//
// The functions are those of CEL's standard library, but for the macros map and filter and the
// concatenation of lists, which make a short expression ask for a lot of memory; the pattern
// of matches() must be a literal.
package filter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"regexp/syntax"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
	"golang.org/x/sync/semaphore"

	"postamt/sidecar/internal/event"
)

// What one evaluation may cost at most, so that a filter cannot eat a replica.
const (
	// MaxBytes bounds an expression.
	MaxBytes = 4 << 10
	// maxCost bounds the steps of an evaluation: a comparison is 1, a look through a text 1 for
	// each 100 bytes. All of them take some 50 ms; a common filter takes ten.
	maxCost = 50_000
	// maxTime ends a loop whose steps take longer than they count.
	maxTime = time.Second
	// A match cannot be interrupted: at worst it takes the product of these two, of 17 million steps, which
	// are 0.3 s where each is 20 ns.
	maxRegexProgram = 256
	maxMatchBytes   = 64 << 10
	// matchStepsPerCost makes matches cost what they take: maxCost is 25 million steps, and half a second.
	// maxTime does not end an expression without a loop, as it is looked at in loops only; and a dozen
	// short patterns with repetitions, one after the other, would take a multiple of it.
	matchStepsPerCost = 500
)

const op = "filter"

// Filter is a compiled expression. It is safe for concurrent use.
type Filter struct {
	program cel.Program
	loops   bool
}

// environment is the same for every expression, and takes milliseconds to make.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	text, nullable := cel.StringType, cel.NullableType(cel.StringType)
	return cel.NewCustomEnv(
		cel.StdLib(cel.StdLibSubset(&env.LibrarySubset{
			IncludeMacros:    []string{operators.Has, operators.All, operators.Exists, operators.ExistsOne},
			ExcludeFunctions: []*env.Function{{Name: operators.Add, Overloads: []*env.Overload{{ID: overloads.AddList}}}},
		})),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(MaxBytes),
		cel.ASTValidators(patterns{}),
		cel.Variable("topic", text),
		cel.Variable("partition", cel.IntType),
		cel.Variable("offset", cel.IntType),
		cel.Variable("timestamp", cel.TimestampType),
		cel.Variable("key", nullable),
		cel.Variable("headers", cel.MapType(text, text)),
		cel.Variable("data", cel.DynType),
		cel.Variable("type", text),
		cel.Variable("source", text),
		cel.Variable("subject", nullable),
		cel.Variable("id", text),
		cel.Variable("time", cel.TimestampType),
	)
})

// Compile reads an expression. Its errors are event.Errors of kind Unprocessable and say
// where the mistake is.
func Compile(expression string) (f *Filter, err error) {
	defer func() {
		if p := recover(); p != nil { // of the library's: no client shall be able to cause a 500
			f, err = nil, &event.Error{Kind: event.Unprocessable, Op: op, Msg: msgPanic, Err: fmt.Errorf("panic: %v", p)}
		}
	}()
	if len(expression) > MaxBytes {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the filter has %d bytes; it has at most %d", len(expression), MaxBytes)
	}
	if !utf8.ValidString(expression) {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the filter is not UTF-8")
	}
	if strings.TrimSpace(expression) == "" {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the filter is empty; it must be an expression in CEL, such as data.amount > 50")
	}
	celEnv, err := environment()
	if err != nil {
		return nil, &event.Error{Kind: event.Internal, Op: op, Msg: "the filter's language could not be set up", Err: err}
	}
	checked, issues := celEnv.Compile(expression)
	if issues.Err() != nil {
		return nil, mistake(issues)
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the filter gives a %s; it must give true or false", t)
	}
	program, err := celEnv.Program(checked,
		cel.CostLimit(maxCost), cel.CostTracking(costs{patternsOf(checked.NativeRep())}), cel.InterruptCheckFrequency(16),
		cel.EvalOptions(cel.OptOptimize), cel.OptimizeRegex(boundedMatches(overloads.Matches), boundedMatches(overloads.MatchesString)))
	if err != nil {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the filter cannot be made a program: %v", err)
	}
	loops := ast.MatchDescendants(ast.NavigateAST(checked.NativeRep()), ast.KindMatcher(ast.ComprehensionKind))
	return &Filter{program, len(loops) > 0}, nil
}

const msgPanic = "the filter cannot be compiled; write it in another way"

// mistake says where the first mistakes are.
func mistake(issues *cel.Issues) error {
	const shown = 3
	var texts []string
	for i, e := range issues.Errors() {
		if i == shown {
			texts = append(texts, "and more")
			break
		}
		// Of a mistake that the parser meets it says what all could have followed.
		text, _, _ := strings.Cut(e.Message, " expecting {")
		text, _, _ = strings.Cut(text, " (in container ")
		if e.Location.Line() > 0 { // a limit of the whole expression has no place
			text = fmt.Sprintf("line %d, column %d: %s", e.Location.Line(), e.Location.Column()+1, text)
		}
		texts = append(texts, text)
	}
	return event.Errorf(event.Unprocessable, 0, op, "the filter is not an expression that can be used here: %s", strings.Join(texts, "; "))
}

// costs counts what the library counts as one step where it does not know the types before,
// as it never does with data, and matches by the steps that they may take.
type costs struct{ programs map[string]int } // steps of the patterns, written out

// CallCost is nil where the library counts well.
func (c costs) CallCost(function, _ string, args []ref.Val, _ ref.Val) *uint64 {
	cost := uint64(1)
	switch function {
	case overloads.StartsWith, overloads.EndsWith:
		return nil
	case overloads.Matches:
		text, _ := args[0].Value().(string)
		pattern, _ := args[1].Value().(string)
		cost += uint64(len(text) * c.programs[pattern] / matchStepsPerCost) //nolint:gosec // neither is negative
	}
	for _, arg := range args {
		if _, text := arg.(types.String); text || function != overloads.Size {
			cost += weight(arg.Value(), maxCost)
		}
	}
	return &cost
}

// weight is how much there is to look through in a value, and no more than limit.
func weight(v any, limit uint64) (sum uint64) {
	switch v := v.(type) {
	case string:
		return uint64(len(v) / 100)
	case []byte:
		return uint64(len(v) / 100)
	case []any:
		for _, e := range v {
			if sum += 1 + weight(e, limit); sum > limit {
				break
			}
		}
	case map[string]any:
		for _, e := range v {
			if sum += 1 + weight(e, limit); sum > limit {
				break
			}
		}
	case map[string]string: // the headers
		for _, e := range v {
			if sum += 1 + uint64(len(e)/100); sum > limit {
				break
			}
		}
	case []ref.Val: // a literal's
		for _, e := range v {
			if sum += 1 + weight(e.Value(), limit); sum > limit {
				break
			}
		}
	case map[ref.Val]ref.Val:
		for _, e := range v {
			if sum += 1 + weight(e.Value(), limit); sum > limit {
				break
			}
		}
	}
	return sum
}

// patterns refuses patterns that are computed, as a record could bring them, and those that
// are large. (The library's own check of the size, RegexProgramSizeLimit, panics on 'a{2}'.)
type patterns struct{}

func (patterns) Name() string { return "postamt.patterns" }

func (patterns) Validate(_ *cel.Env, _ cel.ValidatorConfig, a *ast.AST, issues *cel.Issues) {
	for pattern := range patternArguments(a) {
		if pattern.Kind() != ast.LiteralKind {
			issues.ReportErrorAtID(pattern.ID(), "the pattern of matches() must be a literal string")
			continue
		}
		text, _ := pattern.AsLiteral().Value().(string) // the checker has seen to the type
		switch size, err := programSize(text); {
		case err != nil:
			issues.ReportErrorAtID(pattern.ID(), "the pattern cannot be read: %v", err)
		case size > maxRegexProgram:
			issues.ReportErrorAtID(pattern.ID(), "the pattern has %d steps when its repetitions are written out; it may have %d", size, maxRegexProgram)
		}
	}
}

// patternArguments are what calls of matches() have as their pattern.
func patternArguments(a *ast.AST) iter.Seq[ast.Expr] {
	return func(yield func(ast.Expr) bool) {
		for _, call := range ast.MatchDescendants(ast.NavigateAST(a), ast.FunctionMatcher(overloads.Matches)) {
			if args := call.AsCall().Args(); !yield(args[len(args)-1]) {
				return
			}
		}
	}
}

// patternsOf tells how large the programs of an expression's patterns are, which have been checked.
func patternsOf(a *ast.AST) map[string]int {
	sizes := make(map[string]int)
	for pattern := range patternArguments(a) {
		text, _ := pattern.AsLiteral().Value().(string)
		sizes[text], _ = programSize(text)
	}
	return sizes
}

func programSize(pattern string) (int, error) {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return 0, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return 0, err
	}
	return len(program.Inst), nil
}

// boundedMatches compiles a pattern once for all records, and bounds what it looks through.
func boundedMatches(overload string) *interpreter.RegexOptimization {
	return &interpreter.RegexOptimization{
		Function: overloads.Matches, OverloadID: overload, RegexIndex: 1,
		Factory: func(call interpreter.InterpretableCall, pattern string) (interpreter.InterpretableCall, error) {
			compiled, err := regexp.Compile(pattern)
			if err != nil {
				return nil, err
			}
			return interpreter.NewCall(call.ID(), call.Function(), call.OverloadID(), call.Args(), func(args ...ref.Val) ref.Val {
				in, ok := args[0].(types.String)
				switch {
				case !ok:
					return types.MaybeNoSuchOverloadErr(args[0])
				case len(in) > maxMatchBytes:
					return types.NewErr("matches() looks through at most %d bytes, and the text has %d", maxMatchBytes, len(in))
				}
				return types.Bool(compiled.MatchString(string(in)))
			}), nil
		},
	}
}

// processors bounds how many evaluations run at once, as the processors are the process's:
// whatever is to be filtered, one half of them is left for everything else.
var processors = semaphore.NewWeighted(int64(max(1, runtime.GOMAXPROCS(0)/2)))

// Match tells whether a record is wanted. missing is a no for want of something that the
// expression asks for: a field, a header or an element that the record does not have. An
// error is anything else that keeps an expression from being true or false, or ctx.Err() when
// ctx has ended before the record's turn came: then nothing is decided. An evaluation that has
// begun is not ended by ctx; it takes at most a second or two.
func (f *Filter) Match(ctx context.Context, r *event.Record) (match, missing bool, err error) {
	if err := processors.Acquire(ctx, 1); err != nil {
		return false, false, err
	}
	defer processors.Release(1)
	vars := &variables{record: r}
	var out ref.Val
	if f.loops {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxTime)
		defer cancel()
		out, _, err = f.program.ContextEval(bounded, vars)
	} else {
		out, _, err = f.program.Eval(vars)
	}
	switch {
	case err != nil && isMissing(err):
		return false, true, nil
	case err != nil:
		return false, false, evaluationError(err)
	}
	yes, ok := out.(types.Bool)
	if !ok {
		return false, false, fmt.Errorf("the filter gives a %s; it must give true or false", out.Type().TypeName())
	}
	return bool(yes), false, nil
}

// isMissing goes by the text, as the library's errors have no type that it exports: a test
// tells when they change.
func isMissing(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "no such key: ") || strings.HasPrefix(text, "index out of bounds: ")
}

// evaluationError says what a user can do about it.
func evaluationError(err error) error {
	var cancelled interpreter.EvalCancelledError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the filter takes longer than %v for this record", maxTime)
	case errors.As(err, &cancelled):
		return errors.New("the filter costs too much for this record: it loops or looks through too much of it")
	case strings.HasPrefix(err.Error(), "no such overload"):
		return errors.New("the filter uses a value as another type than it has in this record")
	}
	return err
}
