package runner

import (
	"context"
	"sync"
	"time"
)

// schedulerWorkers is how many calls to the placement service may be under way at once.
const schedulerWorkers = 4

// SchedulerTasks runs calls to the placement service off the raft workers, each with a deadline: a
// paused placement service must never slow a region.
type SchedulerTasks struct {
	timeout time.Duration
	queue   chan func(context.Context)
}

// NewSchedulerTasks makes the runner; at most limit tasks wait.
func NewSchedulerTasks(timeout time.Duration, limit int) *SchedulerTasks {
	return &SchedulerTasks{timeout: timeout, queue: make(chan func(context.Context), limit)}
}

// Submit queues a task; false means that the queue is full and the task will not run. A task that
// was accepted may not run if the store stops.
func (t *SchedulerTasks) Submit(task func(context.Context)) bool {
	select {
	case t.queue <- task:
		return true
	default:
		return false
	}
}

// Run works until ctx ends. Tasks still queued then run with an ended context, so that each caller
// that waits for their answer gets one.
func (t *SchedulerTasks) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for range schedulerWorkers {
		wg.Add(1)
		// Owned by Run; ends with ctx.
		go func() {
			defer wg.Done()
			for {
				select {
				case <-ctx.Done():
					return
				case task := <-t.queue:
					call, cancel := context.WithTimeout(ctx, t.timeout)
					task(call)
					cancel()
				}
			}
		}()
	}
	wg.Wait()
	for {
		select {
		case task := <-t.queue:
			task(ctx)
		default:
			return
		}
	}
}
