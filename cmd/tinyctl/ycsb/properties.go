package ycsb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Properties are settings by name, as files and -p give them.
type Properties map[string]string

// defaults are the core workload's.
var defaults = Properties{
	"workload": "core", "table": "usertable", "recordcount": "1000", "operationcount": "1000",
	"insertstart": "0", "insertcount": "0",
	"fieldcount": "10", "fieldlength": "100", "writeallfields": "false", "readallfields": "true",
	"readproportion": "0.95", "updateproportion": "0.05", "insertproportion": "0",
	"scanproportion": "0", "readmodifywriteproportion": "0",
	"requestdistribution": "uniform", "maxscanlength": "1000", "scanlengthdistribution": "uniform",
	"insertorder": "hashed",
	"threadcount": "200", "target": "0", "maxexecutiontime": "0", "measurement.interval": "10",
}

// presets are the workloads by letter; the core workload's proportions not named in one are 0.
var presets = map[string]Properties{
	"a": {"readproportion": "0.5", "updateproportion": "0.5", "requestdistribution": "zipfian"},
	"b": {"readproportion": "0.95", "updateproportion": "0.05", "requestdistribution": "zipfian"},
	"c": {"readproportion": "1", "requestdistribution": "zipfian"},
	"d": {"readproportion": "0.95", "insertproportion": "0.05", "requestdistribution": "latest"},
	"e": {
		"scanproportion": "0.95", "insertproportion": "0.05", "requestdistribution": "zipfian",
		"maxscanlength": "100",
	},
	"f": {
		"readproportion": "0.5", "readmodifywriteproportion": "0.5",
		"requestdistribution": "zipfian",
	},
}

var proportions = []string{
	"readproportion", "updateproportion", "insertproportion", "scanproportion",
	"readmodifywriteproportion",
}

// ReadFile adds the properties of a file: key=value lines; # and ! begin comments.
func (p Properties) ReadFile(r io.Reader) error {
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		if err := p.Set(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return sc.Err()
}

// Set adds one property given as key=value.
func (p Properties) Set(assignment string) error {
	key, value, ok := strings.Cut(assignment, "=")
	if key = strings.TrimSpace(key); !ok || key == "" {
		return fmt.Errorf("%q is not key=value", assignment)
	}
	p[key] = strings.TrimSpace(value)
	return nil
}

// resolved is what holds: what is given, over the workload's preset, over the defaults.
func (p Properties) resolved() (Properties, error) {
	out := maps.Clone(defaults)
	letter := strings.TrimPrefix(p["workload"], "workload")
	if preset, ok := presets[letter]; ok {
		for _, name := range proportions {
			out[name] = "0"
		}
		maps.Copy(out, preset)
	} else if w := p["workload"]; w != "" && w != "core" && !strings.HasSuffix(w, ".CoreWorkload") {
		return nil,
			fmt.Errorf("workload %q is none of core, %s", w,
				strings.Join(slices.Sorted(maps.Keys(presets)), ", "))
	}
	maps.Copy(out, p)
	return out, nil
}

// Config is a checked set of properties.
type Config struct {
	Table                    string
	Records, Operations      int64
	InsertStart, InsertCount int64 // of a load; count 0: up to Records
	FieldCount, FieldLength  int
	WriteAllFields           bool
	proportions              []float64 // in the order of kinds
	Distribution             string    // uniform, zipfian or latest
	MaxScan                  int
	ScanUniform              bool // else every scan is for one record up to MaxScan, zipfian
	OrderedInserts           bool
	Threads                  int
	Target                   float64 // operations a second; 0: no limit
	MaxTime                  time.Duration
	Interval                 time.Duration // between reports; 0: at the end only
	effective                Properties
}

// Config checks the properties. Unknown names are kept and have no effect, as in YCSB's tools.
func (p Properties) Config() (Config, error) {
	all, err := p.resolved()
	if err != nil {
		return Config{}, err
	}
	r := reader{p: all}
	c := Config{
		Table: all["table"], Records: r.number("recordcount", 1),
		Operations:  r.number("operationcount", 1),
		InsertStart: r.number("insertstart", 0), InsertCount: r.number("insertcount", 0),
		FieldCount: int(r.number("fieldcount", 1)), FieldLength: int(r.number("fieldlength", 1)),
		WriteAllFields: r.yes("writeallfields"),
		Distribution:   r.oneOf("requestdistribution", "uniform", "zipfian", "latest"),
		MaxScan:        int(r.number("maxscanlength", 1)),
		ScanUniform:    r.oneOf("scanlengthdistribution", "uniform", "zipfian") == "uniform",
		OrderedInserts: r.oneOf("insertorder", "hashed", "ordered") == "ordered",
		Threads:        int(r.number("threadcount", 1)), Target: r.real("target"),
		MaxTime:   time.Duration(r.number("maxexecutiontime", 0)) * time.Second,
		Interval:  time.Duration(r.number("measurement.interval", 0)) * time.Second,
		effective: all,
	}
	sum := 0.0
	for _, name := range proportions {
		v := r.real(name)
		c.proportions = append(c.proportions, v)
		sum += v
	}
	if sum <= 0 {
		r.errs = append(r.errs, errors.New("all proportions are 0"))
	}
	if c.InsertStart > c.Records {
		r.errs = append(r.errs, errors.New("insertstart is beyond recordcount"))
	}
	return c, errors.Join(r.errs...)
}

// reader gathers what is wrong with values.
type reader struct {
	p    Properties
	errs []error
}

func (r *reader) bad(name, want string) {
	r.errs = append(r.errs, fmt.Errorf("%s=%s: want %s", name, r.p[name], want))
}

func (r *reader) number(name string, least int64) int64 {
	n, err := strconv.ParseInt(r.p[name], 10, 64)
	if err != nil || n < least {
		r.bad(name, fmt.Sprintf("a whole number from %d on", least))
	}
	return n
}

func (r *reader) real(name string) float64 {
	v, err := strconv.ParseFloat(r.p[name], 64)
	if err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		r.bad(name, "a number from 0 on")
	}
	return v
}

func (r *reader) yes(name string) bool {
	v, err := strconv.ParseBool(r.p[name])
	if err != nil {
		r.bad(name, "true or false")
	}
	return v
}

func (r *reader) oneOf(name string, allowed ...string) string {
	if !slices.Contains(allowed, r.p[name]) {
		r.bad(name, "one of "+strings.Join(allowed, ", "))
	}
	return r.p[name]
}

// String lists the properties in force as YCSB's tools do.
func (c Config) String() string {
	const stars = "*****************"
	var b strings.Builder
	fmt.Fprintf(&b, "%s properties %s\n", stars, stars)
	for _, k := range slices.Sorted(maps.Keys(c.effective)) {
		fmt.Fprintf(&b, "%q=%q\n", k, c.effective[k])
	}
	fmt.Fprintln(&b, strings.Repeat("*", 2*len(stars)+len(" properties ")))
	return b.String()
}
