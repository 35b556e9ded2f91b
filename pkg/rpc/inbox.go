package rpc

import "sync"

// Inbox holds the messages of a stream until the receiver takes them, and knows how much of the
// sender's window is to be given back. The reading goroutine of the connection puts in, one other
// goroutine takes out.
type Inbox struct {
	// Ready wakes the receiver: something has come.
	Ready chan struct{}
	// window is the size of the stream's window.
	window int64
	mu     struct {
		sync.Mutex
		queue []Message
		head  int
		// end is what RecvMsg returns after the last message.
		end error
		// inline sees messages first; waiting: the receiver is in RecvMsg and has taken everything.
		inline  func(msg []byte) bool
		waiting bool
		// owed is what the receiver has taken and was not given back to the sender's window yet.
		owed int64
		// Of the message that is coming, given is what was given back to the window already; held
		// is more of it, which will be when the queue is empty.
		held, given int64
	}
}

// Message is one that has come.
type Message struct {
	// Body has neither prefix nor checksum. It stays compressed, if the flag Compressed is not 0,
	// until it is taken: the window would else not bound the queue's memory.
	Body       []byte
	Compressed byte
	// Owed counts against the sender's window until the message is taken, in bytes.
	Owed int64
	// Charged is what the call is charged for it; a client has no such limit.
	Charged int64
}

// Init makes the inbox of a new stream, with a window of so many bytes.
func (q *Inbox) Init(window int64) {
	q.Ready = make(chan struct{}, 1)
	q.window = window
}

// Wake puts a token into a channel of capacity 1, unless it has one.
func Wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// OnMessage sets what sees messages on the reading goroutine.
func (q *Inbox) OnMessage(f func(msg []byte) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.inline = f
}

// Inline is what may see the next message on the reading goroutine; nil: nobody.
func (q *Inbox) Inline() func(msg []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.mu.waiting {
		return nil
	}
	return q.mu.inline
}

// Push hands a message to the receiver. Its sender's window bounds the queue.
func (q *Inbox) Push(m Message) {
	q.mu.Lock()
	m.Owed -= q.mu.given
	q.mu.held, q.mu.given = 0, 0
	q.mu.queue = append(q.mu.queue, m)
	q.mu.waiting = false
	q.mu.Unlock()
	Wake(q.Ready)
}

// Early tells how much of an incomplete message, of which part has come and not been given back by
// the reading goroutine, is to be given back now, so that the rest can come. While others are
// queued it is nothing: a sender could make the queue as long as it likes. Then it is due when the
// receiver has taken them.
func (q *Inbox) Early(part int64) int64 {
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

// Queued is how many messages wait for the receiver, and their bytes. whole: no part of a message
// waits for them.
func (q *Inbox) Queued() (messages, bytes int, whole bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.mu.queue[q.mu.head:] {
		messages, bytes = messages+1, bytes+len(m.Body)
	}
	return messages, bytes, q.mu.held == 0
}

// IsBehind tells whether messages wait for the receiver.
func (q *Inbox) IsBehind() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.head < len(q.mu.queue)
}

// EndRecv says what comes after the last message: io.EOF or an error.
func (q *Inbox) EndRecv(err error) {
	q.mu.Lock()
	if q.mu.end == nil {
		q.mu.end = err
	}
	q.mu.Unlock()
	Wake(q.Ready)
}

// End is what comes after the last message; nil if that is not known.
func (q *Inbox) End() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.end
}

// Pop takes the next message; give is how much the sender may now send more.
func (q *Inbox) Pop() (m Message, give int64, ok bool, end error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.head == len(q.mu.queue) {
		q.mu.waiting = q.mu.end == nil
		return m, 0, false, q.mu.end
	}
	q.mu.waiting = false
	m = q.mu.queue[q.mu.head]
	q.mu.queue[q.mu.head] = Message{}
	if q.mu.head++; q.mu.head == len(q.mu.queue) {
		q.mu.queue, q.mu.head = q.mu.queue[:0], 0
		q.mu.owed += q.mu.held
		q.mu.held, q.mu.given = 0, q.mu.given+q.mu.held
	}
	return m, q.oweLocked(m.Owed), true, nil
}

// oweLocked counts what was taken, and says how much to give back to the sender's window now.
func (q *Inbox) oweLocked(n int64) (give int64) {
	if q.mu.owed += n; q.mu.owed >= q.window/4 {
		give, q.mu.owed = q.mu.owed, 0
	}
	return give
}

// Took counts a message of so many bytes that was worked off inline, and says how much to give
// back.
func (q *Inbox) Took(size int64) (give int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	give = q.oweLocked(size - q.mu.given)
	q.mu.held, q.mu.given = 0, 0
	return give
}
