package rpc

// PrefixSize is what stands before every message: one byte that says whether it is compressed, four
// of length.
const PrefixSize = 5

// Assembler puts a message together from the frames it comes in.
type Assembler struct {
	// Msg is what has come of the message, in memory of its own.
	Msg []byte
	// Need is the size of the message with its prefix, once that is known.
	Need int
	// Early is how many bytes of an answer were given back to the server's window already.
	Early int64
}

// Started tells whether a part of a message has come and the rest has not.
func (a *Assembler) Started() bool { return len(a.Msg) > 0 }

// Add takes bytes from data. When a message is complete it is returned with its prefix: within
// data, or kept, in memory of its own. waits: there is no room for the whole message
// yet; memory follows what has come, at most twice that. k is the call's checksum. Errors are
// statuses, or ErrCorrupt.
func (a *Assembler) Add(
	data []byte, limit int, waits bool, k *Checksum,
) (msg []byte, kept bool, rest []byte, err error) {
	if len(a.Msg) < PrefixSize {
		if len(a.Msg) == 0 && len(data) >= PrefixSize {
			if a.Need, err = k.messageSize(data, limit); err != nil {
				return nil, false, nil, err
			}
			if len(data) >= a.Need { // the usual case: nothing to put together
				return data[:a.Need:a.Need], false, data[a.Need:], nil
			}
		}
		n := min(PrefixSize-len(a.Msg), len(data))
		a.Msg = append(a.Msg, data[:n]...)
		data = data[n:]
		if len(a.Msg) < PrefixSize {
			return nil, false, nil, nil
		}
		if a.Need, err = k.messageSize(a.Msg, limit); err != nil {
			return nil, false, nil, err
		}
		// Room for all of it, unless that is much: a size costs its sender nothing.
		a.Msg = append(make([]byte, 0, min(a.Need, 64<<10)), a.Msg...)
	}
	n := min(a.Need-len(a.Msg), len(data))
	if len(a.Msg)+n > cap(a.Msg) {
		size := a.Need
		if waits {
			size = min(size, 2*(len(a.Msg)+n))
		}
		a.Msg = append(make([]byte, 0, size), a.Msg...)
	}
	a.Msg = append(a.Msg, data[:n]...)
	if len(a.Msg) < a.Need {
		return nil, false, nil, nil
	}
	return a.Msg, true, data[n:], nil
}
