package rpc

import "sync"

// inbox holds the messages of a stream until whoever receives takes them, and knows how much of the sender's window is
// to be given back. The reading goroutine of the connection puts in, one other goroutine takes out.
type inbox struct {
	// ready wakes the receiver: something has come.
	ready chan struct{}
	// window is the size of the stream's window.
	window int64
	mu     struct {
		sync.Mutex
		queue []message
		head  int
		// end is what RecvMsg returns after the last message.
		end error
		// inline sees messages first; waiting: the receiver is in RecvMsg and has taken everything.
		inline  func(msg []byte) bool
		waiting bool
		// owed is what the receiver has taken and was not given back to the sender's window yet.
		owed int64
		// Of the message that is coming, given is what was given back to the window already; held is more of it, which
		// will be when the queue is empty.
		held, given int64
	}
}

// message is one that has come; owed counts against the sender's window until it is taken. It stays compressed until
// then, or the window would not bound the queue's memory.
type message struct {
	body       []byte
	compressed byte
	owed       int64
	// charged is what the call is charged for it; a client has no such limit.
	charged int64
}

func (q *inbox) init(window int64) {
	q.ready = make(chan struct{}, 1)
	q.window = window
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// onMessage sets what sees messages on the reading goroutine.
func (q *inbox) onMessage(f func(msg []byte) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.inline = f
}

// inline is what may see the next message on the reading goroutine; nil: nobody.
func (q *inbox) inline() func(msg []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.mu.waiting {
		return nil
	}
	return q.mu.inline
}

// push hands a message to the receiver. Its sender's window bounds the queue.
func (q *inbox) push(m message) {
	q.mu.Lock()
	m.owed -= q.mu.given
	q.mu.held, q.mu.given = 0, 0
	q.mu.queue = append(q.mu.queue, m)
	q.mu.waiting = false
	q.mu.Unlock()
	wake(q.ready)
}

// early tells how much of an incomplete message, of which part has come and not been given back by the reading
// goroutine, is to be given back now, so that the rest can come. While others are queued it is nothing: a sender could
// make the queue as long as it likes. Then it is due when the receiver has taken them.
func (q *inbox) early(part int64) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	part -= q.mu.given
	if q.mu.head < len(q.mu.queue) {
		q.mu.held = part
		return 0
	}
	q.mu.held, q.mu.given = 0, q.mu.given+part
	return part
}

// queued is how many messages wait for the receiver, and their bytes. whole: no part of a message waits for them.
func (q *inbox) queued() (messages, bytes int, whole bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.mu.queue[q.mu.head:] {
		messages, bytes = messages+1, bytes+len(m.body)
	}
	return messages, bytes, q.mu.held == 0
}

// isBehind tells whether messages wait for the receiver.
func (q *inbox) isBehind() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.head < len(q.mu.queue)
}

// endRecv says what comes after the last message: io.EOF or an error.
func (q *inbox) endRecv(err error) {
	q.mu.Lock()
	if q.mu.end == nil {
		q.mu.end = err
	}
	q.mu.Unlock()
	wake(q.ready)
}

// pop takes the next message; give is how much the sender may now send more.
func (q *inbox) pop() (m message, give int64, ok bool, end error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.head == len(q.mu.queue) {
		q.mu.waiting = q.mu.end == nil
		return m, 0, false, q.mu.end
	}
	q.mu.waiting = false
	m = q.mu.queue[q.mu.head]
	q.mu.queue[q.mu.head] = message{}
	if q.mu.head++; q.mu.head == len(q.mu.queue) {
		q.mu.queue, q.mu.head = q.mu.queue[:0], 0
		q.mu.owed += q.mu.held
		q.mu.held, q.mu.given = 0, q.mu.given+q.mu.held
	}
	return m, q.oweLocked(m.owed), true, nil
}

// oweLocked counts what was taken, and says how much to give back to the sender's window now.
func (q *inbox) oweLocked(n int64) (give int64) {
	if q.mu.owed += n; q.mu.owed >= q.window/4 {
		give, q.mu.owed = q.mu.owed, 0
	}
	return give
}

// took counts a message of so many bytes that was worked off inline, and says how much to give back.
func (q *inbox) took(size int64) (give int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	give = q.oweLocked(size - q.mu.given)
	q.mu.held, q.mu.given = 0, 0
	return give
}
