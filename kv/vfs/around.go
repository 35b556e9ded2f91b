package vfs

// AroundSync returns a file system that calls around for every Sync of a file; around must call
// sync once, unless it means to fail in its place, and return its error. It may be called by
// several goroutines.
func AroundSync(below FS, around func(sync func() error) error) FS {
	return aroundFS{FS: below, around: around}
}

type aroundFS struct {
	FS
	around func(sync func() error) error
}

func (a aroundFS) Create(name string) (File, error) { return a.wrap(a.FS.Create(name)) }
func (a aroundFS) Open(name string) (File, error)   { return a.wrap(a.FS.Open(name)) }

func (a aroundFS) wrap(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return aroundFile{File: f, around: a.around}, nil
}

type aroundFile struct {
	File
	around func(sync func() error) error
}

func (f aroundFile) Sync() error { return f.around(f.File.Sync) }
