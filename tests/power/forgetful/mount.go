package forgetful

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ErrNoFUSE means that this machine cannot mount: no /dev/fuse, or not root.
var ErrNoFUSE = errors.New("forgetful: FUSE cannot be used here")

// Mount puts the file system at dir. It must be unmounted before the process ends.
func (d *Disk) Mount(dir string) (unmount func() error, err error) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		return nil, errors.Join(ErrNoFUSE, err)
	} else if err := f.Close(); err != nil {
		return nil, err
	}
	// The kernel is the only one who changes anything, so it may cache for as long as it likes.
	long := time.Hour
	server, err := fs.Mount(dir, &node{disk: d, it: d.root}, &fs.Options{
		EntryTimeout: &long, AttrTimeout: &long,
		MountOptions: fuse.MountOptions{
			DirectMountStrict: true, FsName: "forgetful", Name: "forgetful", DisableXAttrs: true,
			MaxWrite: 1 << 20,
		},
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		err := server.Unmount()
		if err != nil {
			// Somebody still has a file open; new processes must not see this mount.
			err = unix.Unmount(dir, unix.MNT_DETACH)
		}
		return err
	}, nil
}

// node is an item as the kernel sees it. Open files have no handles of their own.
type node struct {
	fs.Inode
	disk *Disk
	it   *item
}

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeLinker    = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
)

// change runs f under the lock, if the power is on.
func (n *node) change(f func() syscall.Errno) syscall.Errno {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	if n.disk.off {
		return syscall.EIO
	}
	return f()
}

func (it *item) attr(out *fuse.Attr) {
	out.Ino, out.Mode, out.Nlink = it.id, it.mode, 1
	out.Size = uint64(len(it.data))
	out.Blocks = (out.Size + 511) / 512
	out.SetTimes(&it.mtime, &it.mtime, &it.mtime)
}

func (n *node) inode(ctx context.Context, it *item, out *fuse.EntryOut) *fs.Inode {
	it.attr(&out.Attr)
	return n.NewInode(ctx, &node{disk: n.disk, it: it},
		fs.StableAttr{Mode: it.mode & syscall.S_IFMT, Ino: it.id})
}

func (n *node) Lookup(
	ctx context.Context, name string, out *fuse.EntryOut,
) (*fs.Inode, syscall.Errno) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	it, ok := n.it.names[name]
	if !ok {
		return nil, syscall.ENOENT
	}
	return n.inode(ctx, it, out), 0
}

func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	n.it.attr(&out.Attr)
	return 0
}

func (n *node) Setattr(
	_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut,
) syscall.Errno {
	return n.change(func() syscall.Errno {
		if size, ok := in.GetSize(); ok {
			n.it.truncate(int64(size))
		}
		if mode, ok := in.GetMode(); ok {
			n.it.mode = n.it.mode&syscall.S_IFMT | mode&0o7777
		}
		n.it.attr(&out.Attr)
		return 0
	})
}

func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	var list []fuse.DirEntry
	for name, it := range n.it.names {
		list = append(list, fuse.DirEntry{Name: name, Ino: it.id, Mode: it.mode & syscall.S_IFMT})
	}
	return fs.NewListDirStream(list), 0
}

// add makes a new item in the directory.
func (n *node) add(
	ctx context.Context, name string, mode uint32, out *fuse.EntryOut,
) (child *fs.Inode, errno syscall.Errno) {
	errno = n.change(func() syscall.Errno {
		if n.it.names[name] != nil {
			return syscall.EEXIST
		}
		it := n.disk.newItem(mode)
		n.it.names[name] = it
		n.it.mtime = it.mtime
		child = n.inode(ctx, it, out)
		return 0
	})
	return child, errno
}

func (n *node) Mkdir(
	ctx context.Context, name string, mode uint32, out *fuse.EntryOut,
) (*fs.Inode, syscall.Errno) {
	return n.add(ctx, name, syscall.S_IFDIR|mode&0o7777, out)
}

func (n *node) Create(
	ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut,
) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	child, errno := n.add(ctx, name, syscall.S_IFREG|mode&0o7777, out)
	return child, nil, fuse.FOPEN_KEEP_CACHE, errno
}

func (n *node) Link(
	ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut,
) (child *fs.Inode, errno syscall.Errno) {
	errno = n.change(func() syscall.Errno {
		it := target.(*node).it
		n.it.names[name] = it
		child = n.inode(ctx, it, out)
		return 0
	})
	return child, errno
}

func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	return n.change(func() syscall.Errno {
		delete(n.it.names, name)
		return 0
	})
}

func (n *node) Rmdir(_ context.Context, name string) syscall.Errno {
	return n.change(func() syscall.Errno {
		if len(n.it.names[name].names) > 0 {
			return syscall.ENOTEMPTY
		}
		delete(n.it.names, name)
		return 0
	})
}

func (n *node) Rename(
	_ context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32,
) syscall.Errno {
	if flags != 0 {
		return syscall.EINVAL
	}
	return n.change(func() syscall.Errno {
		to := newParent.(*node).it
		if old := to.names[newName]; old != nil && len(old.names) > 0 {
			return syscall.ENOTEMPTY
		}
		to.names[newName] = n.it.names[name]
		delete(n.it.names, name)
		return 0
	})
}

func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *node) Read(
	_ context.Context, _ fs.FileHandle, dest []byte, off int64,
) (fuse.ReadResult, syscall.Errno) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	size := int64(len(n.it.data))
	off = min(off, size)
	return fuse.ReadResultData(dest[:copy(dest, n.it.data[off:])]), 0
}

func (n *node) Write(
	_ context.Context, _ fs.FileHandle, data []byte, off int64,
) (uint32, syscall.Errno) {
	errno := n.change(func() syscall.Errno {
		n.it.write(data, off)
		return 0
	})
	return uint32(len(data)), errno
}

func (n *node) Allocate(
	_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32,
) syscall.Errno {
	return n.change(func() syscall.Errno {
		switch {
		case mode == unix.FALLOC_FL_KEEP_SIZE:
		case mode != 0:
			return syscall.EOPNOTSUPP
		case off+size > uint64(len(n.it.data)):
			n.it.resize(int64(off + size))
		}
		return 0
	})
}

// Fsync is that of files and of directories.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return n.change(func() syscall.Errno {
		n.disk.syncs++
		n.it.sync()
		return 0
	})
}

func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const total = 16 << 30
	out.Bsize, out.Frsize, out.NameLen = pageSize, pageSize, 255
	out.Blocks, out.Bfree, out.Bavail = total/pageSize, total/pageSize, total/pageSize
	out.Files, out.Ffree = 1<<20, 1<<20
	return 0
}
