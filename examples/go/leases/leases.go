// Package leases maintains leases: it sends heartbeats with reports, applies
// directives of the server and reports results.
//
// Worker and service share it. It implements the client side of
// longrunning/v1/worker.proto; copy it into your own project.
package leases

import (
	"cmp"
	"context"
	"errors"
	"log"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "longrunning.dev/examples/gen/longrunningpb"
)

const (
	reportInterval    = 250 * time.Millisecond // maximum age of the progress that clients see
	maxHeartbeatDelay = 500 * time.Millisecond // maximum retry delay of a heartbeat, because leases expire
	callTimeout       = 5 * time.Second
	// ConfirmTimeout is the time in which the first heartbeat of a lease must be answered.
	ConfirmTimeout       = 2 * time.Second
	stableStreamDuration = 10 * time.Second // a stream that lived this long resets the backoff
	maxSharedReportBytes = 2048             // a larger report gets a heartbeat of its own
	maxReports           = 1000             // reports in one heartbeat
)

// Causes of a cancelled work context.
var (
	ErrCancelled = errors.New("operation cancelled")
	ErrLeaseLost = errors.New("lease lost")
	ErrReleased  = errors.New("worker is shutting down")
)

// ErrRetryable marks a failure that another attempt may fix. Wrap it.
var ErrRetryable = errors.New("retryable")

// Handler executes one attempt. Its context is cancelled when it must stop.
type Handler func(context.Context, *Job) (proto.Message, error)

// Job is a held lease and its pending report.
type Job struct {
	Lease        *pb.Lease
	ctx          context.Context // cancelled when the handler must stop
	cancel       context.CancelCauseFunc
	confirmed    chan struct{} // closed when the first heartbeat is answered
	confirm      func()
	lost         atomic.Bool
	mu           sync.Mutex
	report       *pb.LeaseHeartbeat // latest report of the handler
	inFlight     *pb.LeaseHeartbeat // report in the current heartbeat
	acknowledged *pb.LeaseHeartbeat // report that the server has
}

// Marks the lease as lost. A context keeps its first cause, so lost is a flag: a
// cancelled job can still lose its lease.
func (j *Job) lose() {
	j.lost.Store(true)
	j.cancel(ErrLeaseLost)
}

// UpdateReport changes the report that the next heartbeat sends.
func (j *Job) UpdateReport(update func(*pb.LeaseHeartbeat)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	update(j.report)
}

// Returns the fields that changed since the last acknowledged heartbeat.
func (j *Job) pendingReport() *pb.LeaseHeartbeat {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inFlight = proto.Clone(j.report).(*pb.LeaseHeartbeat)
	pending := j.emptyReport()
	if !proto.Equal(j.inFlight.Progress, j.acknowledged.Progress) {
		pending.Progress = j.inFlight.Progress
	}
	if !proto.Equal(j.inFlight.Metadata, j.acknowledged.Metadata) {
		pending.Metadata = j.inFlight.Metadata
	}
	if !proto.Equal(j.inFlight.Detail, j.acknowledged.Detail) {
		pending.Detail = j.inFlight.Detail
	}
	if !proto.Equal(j.inFlight.Checkpoint, j.acknowledged.Checkpoint) {
		pending.Checkpoint = j.inFlight.Checkpoint
	}
	return pending
}

// Returns a heartbeat that only renews the lease.
func (j *Job) emptyReport() *pb.LeaseHeartbeat {
	return &pb.LeaseHeartbeat{Name: j.Lease.Name, LeaseToken: j.Lease.LeaseToken}
}

// Manager maintains the leases of one worker.
type Manager struct {
	Client   pb.OperationWorkerClient
	ID       string
	mu       sync.Mutex
	jobs     map[string]*Job // by lease token, which is unique for each attempt
	draining bool
	sendLock sync.Mutex
	wakeup   chan struct{}
}

// NewManager creates a Manager for a worker with a unique id.
func NewManager(client pb.OperationWorkerClient, id string) *Manager {
	return &Manager{Client: client, ID: id, jobs: map[string]*Job{}, wakeup: make(chan struct{}, 1)}
}

// Run sends heartbeats and reads directives until ctx is cancelled.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.runHeartbeats(ctx) })
	group.Go(func() error { return m.readDirectives(ctx) })
	return group.Wait()
}

// Drain announces that the worker leases no more operations. The server then ends
// its open LeaseOperations calls.
func (m *Manager) Drain() {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	m.wake()
}

// Release stops all running handlers and returns their operations to the queue.
func (m *Manager) Release() {
	for _, job := range m.heldJobs() {
		job.cancel(ErrReleased)
	}
}

// Track starts maintaining a lease. Returns nil if it is already held.
func (m *Manager) Track(lease *pb.Lease) *Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.jobs[string(lease.LeaseToken)] != nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	job := &Job{Lease: lease, ctx: ctx, cancel: cancel}
	job.report, job.acknowledged = job.emptyReport(), job.emptyReport()
	job.confirmed = make(chan struct{})
	job.confirm = sync.OnceFunc(func() { close(job.confirmed) })
	m.jobs[string(lease.LeaseToken)] = job
	m.wake() // a short lease cannot wait for the next scheduled heartbeat
	return job
}

// ExecuteConfirmed runs the handler when the first heartbeat is answered, and reports
// its result.
func (m *Manager) ExecuteConfirmed(job *Job, handler Handler) {
	m.Execute(job, func(ctx context.Context, job *Job) (proto.Message, error) {
		select {
		case <-job.confirmed:
			return handler(ctx, job)
		case <-ctx.Done():
		case <-time.After(ConfirmTimeout):
			job.lose()
		}
		return nil, context.Cause(ctx)
	})
}

// Execute runs the handler and reports its result. The handler goes on while the
// server is away: only the server knows that a lease is lost.
func (m *Manager) Execute(job *Job, handler Handler) {
	response, err := handler(job.ctx, job)
	request := job.finishRequest(response, err)
	if err != nil {
		// Only heartbeats carry checkpoints, so send the last one now.
		_, _ = m.sendHeartbeats()
	}
	err = ErrLeaseLost
	if !job.lost.Load() {
		// FinishOperation is idempotent, so it is retried after a lost response.
		err = Retry(func(ctx context.Context) error {
			_, err := m.Client.FinishOperation(ctx, request)
			return err
		}, job.lost.Load)
	}
	if err != nil {
		// The lease is lost, or the server rejects the result for good. In the
		// latter case the lease expires.
		log.Printf("failed to report result of %s: %v", job.Lease.Name, err)
	} else {
		log.Printf("%s ended attempt %d: %T", job.Lease.Name, job.Lease.Attempt, request.Outcome)
	}
	job.cancel(nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.jobs, string(job.Lease.LeaseToken))
}

func (j *Job) finishRequest(response proto.Message, err error) *pb.FinishOperationRequest {
	request := &pb.FinishOperationRequest{Name: j.Lease.Name, LeaseToken: j.Lease.LeaseToken}
	j.UpdateReport(func(report *pb.LeaseHeartbeat) { request.Metadata = report.Metadata })
	var packed *anypb.Any
	if err == nil {
		packed, err = anypb.New(response)
	}
	switch cause := context.Cause(j.ctx); {
	case err == nil:
		request.Outcome = &pb.FinishOperationRequest_Response{Response: packed}
	case errors.Is(cause, ErrReleased):
		request.Outcome = &pb.FinishOperationRequest_Release_{Release: &pb.FinishOperationRequest_Release{}}
	default:
		code := codes.Internal
		if errors.Is(cause, ErrCancelled) {
			code = codes.Canceled
		} else if errors.Is(err, ErrRetryable) {
			code = codes.Unavailable
		}
		request.Outcome = &pb.FinishOperationRequest_Failure_{Failure: &pb.FinishOperationRequest_Failure{
			Error:     &rpcstatus.Status{Code: int32(code), Message: err.Error()},
			Retryable: errors.Is(err, ErrRetryable),
		}}
	}
	return request
}

// Retry repeats a call until it succeeds, fails for good, or stop returns true.
func Retry(call func(context.Context) error, stop func() bool) error {
	for backoff := (Backoff{}); ; {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		err := call(ctx)
		cancel()
		if !IsTransient(err) || stop() {
			return err
		}
		log.Printf("call failed, retrying: %v", err)
		time.Sleep(backoff.NextDelay())
	}
}

// Backoff returns growing delays with jitter, so that workers do not all reconnect
// at once when a server returns.
type Backoff struct{ delay time.Duration }

// NextDelay returns a delay that grows from 100 ms to 5 s.
func (b *Backoff) NextDelay() time.Duration {
	b.delay = min(max(2*b.delay, 100*time.Millisecond), 5*time.Second)
	return b.delay/2 + rand.N(b.delay/2)
}

// Pack packs JSON-like values as a google.protobuf.Struct.
func Pack(values map[string]any) (*anypb.Any, error) {
	packed, err := structpb.NewStruct(values)
	if err != nil {
		return nil, err
	}
	return anypb.New(packed)
}

// IsTransient reports whether the same call may succeed later. A full store or
// queue is transient, a message that is too large is not.
func IsTransient(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return !isTooLarge(err)
	}
	return false
}

func isTooLarge(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Reason == "TOO_LARGE" {
			return true
		}
	}
	return status.Code(err) == codes.OutOfRange
}

// Sends heartbeats for all leases. Returns the interval until the next ones.
func (m *Manager) sendHeartbeats() (time.Duration, error) {
	m.sendLock.Lock() // of two concurrent sends, an older checkpoint could arrive last
	defer m.sendLock.Unlock()
	var small, large []*Job
	var smallReports, largeReports []*pb.LeaseHeartbeat
	for _, job := range m.heldJobs() {
		if report := job.pendingReport(); proto.Size(report) <= maxSharedReportBytes {
			small, smallReports = append(small, job), append(smallReports, report)
		} else { // on its own, so that a rejection costs no other lease
			large, largeReports = append(large, job), append(largeReports, report)
		}
	}
	// The first heartbeat is sent even if it is empty: it announces a drain.
	first := min(maxReports, len(small))
	interval, err := m.sendHeartbeat(small[:first], smallReports[:first])
	for first < len(small) && err == nil {
		end := min(first+maxReports, len(small))
		_, err = m.sendHeartbeat(small[first:end], smallReports[first:end])
		first = end
	}
	for i := range large {
		if err == nil {
			_, err = m.sendHeartbeat(large[i:i+1], largeReports[i:i+1])
		}
	}
	return interval, err
}

// Sends one heartbeat. Drops a single report that the server rejects as too large.
func (m *Manager) sendHeartbeat(jobs []*Job, reports []*pb.LeaseHeartbeat) (time.Duration, error) {
	request := &pb.HeartbeatRequest{WorkerId: m.ID, Reports: reports}
	m.mu.Lock()
	request.Draining = m.draining
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	response, err := m.Client.Heartbeat(ctx, request)
	if len(jobs) == 1 && isTooLarge(err) {
		log.Printf("dropping oversized report: %v", err)
		request.Reports = []*pb.LeaseHeartbeat{jobs[0].emptyReport()}
		response, err = m.Client.Heartbeat(ctx, request)
	}
	if err != nil {
		return 0, err
	}
	for i, job := range jobs {
		job.acknowledged = job.inFlight
		directive := response.Directives[i]
		if directive.Kind != pb.Directive_LEASE_LOST {
			job.confirm()
		}
		m.applyDirective(directive)
	}
	interval := response.HeartbeatInterval.AsDuration()
	if len(m.heldJobs()) > 0 || request.Draining {
		interval = min(interval, reportInterval)
	}
	return interval, nil
}

func (m *Manager) runHeartbeats(ctx context.Context) error {
	backoff, failing := Backoff{}, false
	for {
		delay, err := m.sendHeartbeats()
		if failing != (err != nil) {
			log.Printf("heartbeat: %v", cmp.Or(err, errors.New("server reachable again")))
			failing = err != nil
		}
		if err != nil {
			delay = min(backoff.NextDelay(), maxHeartbeatDelay)
		} else {
			backoff = Backoff{}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.wakeup:
		case <-time.After(delay):
		}
	}
}

// Reads the stream of directives. The stream only reduces latency: heartbeats return
// the same directives.
func (m *Manager) readDirectives(ctx context.Context) error {
	for backoff := (Backoff{}); ctx.Err() == nil; {
		opened := time.Now()
		stream, err := m.Client.WatchDirectives(ctx, &pb.WatchDirectivesRequest{WorkerId: m.ID})
		for err == nil {
			var directive *pb.Directive
			if directive, err = stream.Recv(); err == nil {
				if directive.Name == "" && directive.Kind == pb.Directive_CONTINUE {
					m.wake() // the stream is open; a heartbeat fetches earlier directives
				}
				m.applyDirective(directive)
			}
		}
		if time.Since(opened) > stableStreamDuration {
			backoff = Backoff{} // not earlier: a draining server ends each stream at once
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff.NextDelay()):
		}
	}
	return nil
}

// Applies a directive. OPERATION_DELETED and DRAIN do not stop running work.
func (m *Manager) applyDirective(directive *pb.Directive) {
	m.mu.Lock()
	job := m.jobs[string(directive.LeaseToken)]
	m.mu.Unlock()
	if job == nil {
		return
	}
	switch directive.Kind {
	case pb.Directive_CANCEL_REQUESTED:
		job.cancel(ErrCancelled)
	case pb.Directive_LEASE_LOST:
		job.lose()
	}
}

func (m *Manager) heldJobs() []*Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	jobs := make([]*Job, 0, len(m.jobs))
	for _, job := range m.jobs {
		jobs = append(jobs, job)
	}
	return jobs
}

func (m *Manager) wake() {
	select {
	case m.wakeup <- struct{}{}:
	default:
	}
}
