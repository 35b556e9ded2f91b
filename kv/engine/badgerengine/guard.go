package badgerengine

import (
	"fmt"
	"runtime"
	"strings"
	"sync"

	badgerlog "github.com/pingcap/log"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tinykv/tinykv/kv/engine"
)

// fatal is what a fatal log line throws when guard is there to catch it.
type fatal struct{ err error }

// guard runs f, which calls the library, and turns its panics and fatal log lines into an error.
//
//go:noinline
func (d *db) guard(f func() error) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case fatal:
			err = d.fail(v.err)
		default:
			err = d.fail(fmt.Errorf("%w: panic in badger: %v", engine.ErrCorrupt, v))
		}
	}()
	if err := d.failure(); err != nil {
		return err
	}
	return f()
}

// The library logs to a global logger and uses it for errors that it then swallows. So there is one
// listener for the process, and a bad line fails every engine that is open: lines do not tell whose
// they are. A server has one engine.
var listeners struct {
	sync.Mutex
	once sync.Once
	open map[*db]bool
}

func listen(d *db) {
	listeners.once.Do(func() {
		logger := zap.New(listenerCore{}, zap.WithFatalHook(fatalHook{}))
		badgerlog.ReplaceGlobals(logger,
			&badgerlog.ZapProperties{Level: zap.NewAtomicLevelAt(zap.InfoLevel)})
	})
	listeners.Lock()
	defer listeners.Unlock()
	if listeners.open == nil {
		listeners.open = make(map[*db]bool)
	}
	listeners.open[d] = true
}

func unlisten(d *db) {
	listeners.Lock()
	defer listeners.Unlock()
	delete(listeners.open, d)
}

func listening() []*db {
	listeners.Lock()
	defer listeners.Unlock()
	dbs := make([]*db, 0, len(listeners.open))
	for d := range listeners.open {
		dbs = append(dbs, d)
	}
	return dbs
}

// lostWork is the one warning that is not about slowness: a commit that failed. What is logged as
// an error always is about something that did not happen.
const lostWork = "handle requests failed"

type listenerCore struct{ fields []zapcore.Field }

func (c listenerCore) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }

func (c listenerCore) With(fields []zapcore.Field) zapcore.Core {
	return listenerCore{append(append([]zapcore.Field(nil), c.fields...), fields...)}
}

func (c listenerCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c listenerCore) Sync() error { return nil }

func (c listenerCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	all := withoutKeys(append(append([]zapcore.Field(nil), c.fields...), fields...))
	bad := e.Level >= zapcore.ErrorLevel || strings.Contains(e.Message, lostWork)
	err := lineError(e.Message, all)
	for _, d := range listening() {
		if !bad {
			d.opts.Logger.Debug("badger: "+e.Message, all...)
			continue
		}
		d.opts.Logger.Warn("badger: "+e.Message, all...)
		d.fail(err)
	}
	return nil
}

func lineError(message string, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	if cause, ok := enc.Fields["error"]; ok {
		return keyError{fmt.Errorf("engine: badger: %s: %v", message, cause)}
	}
	return fmt.Errorf("engine: badger: %s", message)
}

// fatalHook takes the place of os.Exit: the engine has failed already, by Write above. A caller of
// ours up the stack gets the error; a goroutine of the library's stops here for good.
type fatalHook struct{}

func (fatalHook) OnWrite(e *zapcore.CheckedEntry, _ []zapcore.Field) {
	if guarded() {
		panic(fatal{fmt.Errorf("engine: badger: %s", e.Message)})
	}
	select {}
}

// guarded tells whether guard is on the stack of this goroutine.
func guarded() bool {
	pcs := make([]uintptr, 256)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "badgerengine.(*db).guard") {
			return true
		}
		if !more {
			return false
		}
	}
}
