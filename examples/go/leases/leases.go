// Package leases works under leases: it keeps them, obeys the server, and says
// how the work ended.
//
// The part that worker and service share, and the one to copy: it is where the
// rules of longrunning/v1/worker.proto are.
package leases

import (
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
	beat   = 250 * time.Millisecond // how old the progress that clients see may be
	hasty  = 500 * time.Millisecond // the longest pause before another heartbeat: leases run out
	call   = 5 * time.Second        // the deadline of a call
	steady = 10 * time.Second       // after which a stream was a good one
	small  = 2048                   // bytes of a report that shares a heartbeat with others
	most   = 1000                   // reports of one heartbeat
)

// Why work is stopped: the cause of its context.
var (
	ErrCancelled = errors.New("somebody cancelled the operation")
	ErrLost      = errors.New("the lease is lost")
	ErrReleased  = errors.New("the worker stops")
)

// ErrRetryable says that another attempt may succeed. Wrap it.
var ErrRetryable = errors.New("another attempt may succeed")

// Work is done under a lease. Its context ends when it is to stop.
type Work func(context.Context, *Job) (proto.Message, error)

// Job is a lease, and what the next heartbeat tells about it.
type Job struct {
	Lease  *pb.Lease
	ctx    context.Context // ends when the work is to stop
	stop   context.CancelCauseFunc
	over   *time.Timer
	lost   atomic.Bool
	mu     sync.Mutex
	report *pb.LeaseHeartbeat // all there is to tell
	told   *pb.LeaseHeartbeat // what of it the server knows
	sent   *pb.LeaseHeartbeat // what of it is on the way
}

// The cause of a context is its first one. What was cancelled can still be lost.
func (j *Job) lose() {
	j.lost.Store(true)
	j.stop(ErrLost)
}

// Tell changes what the next heartbeat tells.
func (j *Job) Tell(change func(*pb.LeaseHeartbeat)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(j.report)
}

// What changed since the last heartbeat that got through.
func (j *Job) news() *pb.LeaseHeartbeat {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sent = proto.Clone(j.report).(*pb.LeaseHeartbeat)
	news := j.proof()
	if !proto.Equal(j.sent.Progress, j.told.Progress) {
		news.Progress = j.sent.Progress
	}
	if !proto.Equal(j.sent.Metadata, j.told.Metadata) {
		news.Metadata = j.sent.Metadata
	}
	if !proto.Equal(j.sent.Detail, j.told.Detail) {
		news.Detail = j.sent.Detail
	}
	if !proto.Equal(j.sent.Checkpoint, j.told.Checkpoint) {
		news.Checkpoint = j.sent.Checkpoint
	}
	return news
}

// A sign of life without news.
func (j *Job) proof() *pb.LeaseHeartbeat {
	return &pb.LeaseHeartbeat{Name: j.Lease.Name, LeaseToken: j.Lease.LeaseToken}
}

// Keeper has everything that one worker works on.
type Keeper struct {
	Client   pb.OperationWorkerClient
	ID       string
	mu       sync.Mutex
	jobs     map[string]*Job // by token, which is new for each attempt
	draining bool
	oneBeat  sync.Mutex
	hurry    chan struct{}
}

// New makes a Keeper for a worker with an id that no other one uses.
func New(client pb.OperationWorkerClient, id string) *Keeper {
	return &Keeper{Client: client, ID: id, jobs: map[string]*Job{}, hurry: make(chan struct{}, 1)}
}

// Run keeps the leases, for as long as the worker lives.
func (k *Keeper) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.heartbeats(ctx) })
	group.Go(func() error { return k.directives(ctx) })
	return group.Wait()
}

// Drain ends the open calls of LeaseOperations.
func (k *Keeper) Drain() {
	k.mu.Lock()
	k.draining = true
	k.mu.Unlock()
	k.hasten()
}

// Release gives back what still runs, for other workers.
func (k *Keeper) Release() {
	for _, job := range k.held() {
		job.stop(ErrReleased)
	}
}

// Take notes a lease; nil if it is held already.
func (k *Keeper) Take(lease *pb.Lease) *Job {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.jobs[string(lease.LeaseToken)] != nil {
		return nil
	}
	ctx, stop := context.WithCancelCause(context.Background())
	job := &Job{Lease: lease, ctx: ctx, stop: stop}
	job.report, job.told = job.proof(), job.proof()
	// Not renewed in time, the lease is lost; nobody needs to say so.
	job.over = time.AfterFunc(lease.LeaseRemaining.AsDuration(), job.lose)
	k.jobs[string(lease.LeaseToken)] = job
	k.hasten() // a short lease cannot wait for the next beat
	return job
}

// Execute works up to the recorded end.
func (k *Keeper) Execute(job *Job, work Work) {
	response, err := work(job.ctx, job)
	end := job.end(response, err)
	if err != nil {
		// So that a checkpoint is not lost: only heartbeats have it.
		_, _ = k.beat()
	}
	err = ErrLost
	if !job.lost.Load() {
		// Saying the same again is fine, so that a lost answer does no harm.
		err = Tries(func(ctx context.Context) error {
			_, err := k.Client.FinishOperation(ctx, end)
			return err
		}, job.lost.Load)
	}
	if err != nil {
		// The lease is lost, and the operation another's. Or the server does
		// not take what we say, and would not later: the lease runs out.
		log.Printf("not finished: %v", err)
	} else {
		log.Printf("%s ended attempt %d: %T", job.Lease.Name, job.Lease.Attempt, end.Outcome)
	}
	job.over.Stop()
	job.stop(nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.jobs, string(job.Lease.LeaseToken))
}

func (j *Job) end(response proto.Message, err error) *pb.FinishOperationRequest {
	end := &pb.FinishOperationRequest{Name: j.Lease.Name, LeaseToken: j.Lease.LeaseToken}
	j.Tell(func(report *pb.LeaseHeartbeat) { end.Metadata = report.Metadata }) // the last word of it
	var packed *anypb.Any
	if err == nil {
		packed, err = anypb.New(response)
	}
	switch cause := context.Cause(j.ctx); {
	case err == nil:
		end.Outcome = &pb.FinishOperationRequest_Response{Response: packed}
	case errors.Is(cause, ErrReleased):
		end.Outcome = &pb.FinishOperationRequest_Release_{Release: &pb.FinishOperationRequest_Release{}}
	default:
		code := codes.Internal
		if errors.Is(cause, ErrCancelled) {
			code = codes.Canceled
		} else if errors.Is(err, ErrRetryable) {
			code = codes.Unavailable
		}
		end.Outcome = &pb.FinishOperationRequest_Failure_{Failure: &pb.FinishOperationRequest_Failure{
			Error:     &rpcstatus.Status{Code: int32(code), Message: err.Error()},
			Retryable: errors.Is(err, ErrRetryable),
		}}
	}
	return end
}

// Tries calls until there is an answer, or it is enough.
func Tries(try func(context.Context) error, enough func() bool) error {
	for pauses := (Pauses{}); ; {
		ctx, done := context.WithTimeout(context.Background(), call)
		err := try(ctx)
		done()
		if !Again(err) || enough() {
			return err
		}
		log.Printf("%v; trying again", err)
		time.Sleep(pauses.Next())
	}
}

// Pauses come before further tries: longer and longer, and not in step with the
// other workers of a server that comes back.
type Pauses struct{ last time.Duration }

// Next is the next pause.
func (p *Pauses) Next() time.Duration {
	p.last = min(max(2*p.last, 100*time.Millisecond), 5*time.Second)
	return p.last/2 + rand.N(p.last/2)
}

// Pack packs what JSON can say, for those without a message of their own.
func Pack(values map[string]any) (*anypb.Any, error) {
	packed, err := structpb.NewStruct(values)
	if err != nil {
		return nil, err
	}
	return anypb.New(packed)
}

// Again tells whether another try may help: what is full may have room later.
func Again(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return !tooLarge(err)
	}
	return false
}

// What is too large stays so.
func tooLarge(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Reason == "TOO_LARGE" {
			return true
		}
	}
	return status.Code(err) == codes.OutOfRange
}

func (k *Keeper) beat() (time.Duration, error) {
	k.oneBeat.Lock() // or an older checkpoint overtakes a newer one
	defer k.oneBeat.Unlock()
	jobs, shared := k.held(), []*Job(nil)
	var reports, large []*pb.LeaseHeartbeat
	var alone []*Job
	for _, job := range jobs {
		if news := job.news(); proto.Size(news) <= small {
			shared, reports = append(shared, job), append(reports, news)
		} else { // so that it costs no lease of another
			alone, large = append(alone, job), append(large, news)
		}
	}
	// An empty one says at least that the worker drains.
	first := min(most, len(shared))
	next, err := k.tell(shared[:first], reports[:first])
	for first < len(shared) && err == nil {
		end := min(first+most, len(shared))
		_, err = k.tell(shared[first:end], reports[first:end])
		first = end
	}
	for i := range alone {
		if err == nil {
			_, err = k.tell(alone[i:i+1], large[i:i+1])
		}
	}
	return next, err
}

// One heartbeat. A large report that the server refuses is left out.
func (k *Keeper) tell(jobs []*Job, reports []*pb.LeaseHeartbeat) (time.Duration, error) {
	since, request := time.Now(), &pb.HeartbeatRequest{WorkerId: k.ID, Reports: reports}
	k.mu.Lock()
	request.Draining = k.draining
	k.mu.Unlock()
	ctx, done := context.WithTimeout(context.Background(), call)
	defer done()
	answer, err := k.Client.Heartbeat(ctx, request)
	if len(jobs) == 1 && tooLarge(err) {
		log.Printf("a report is dropped: %v", err)
		request.Reports = []*pb.LeaseHeartbeat{jobs[0].proof()}
		answer, err = k.Client.Heartbeat(ctx, request)
	}
	if err != nil {
		return 0, err
	}
	for i, job := range jobs {
		job.told = job.sent
		directive := answer.Directives[i]
		if directive.Kind != pb.Directive_LEASE_LOST {
			job.over.Reset(time.Until(since.Add(directive.LeaseRemaining.AsDuration())))
		}
		k.obey(directive)
	}
	next := answer.HeartbeatInterval.AsDuration()
	if len(k.held()) > 0 || request.Draining {
		next = min(next, beat)
	}
	return next, nil
}

func (k *Keeper) heartbeats(ctx context.Context) error {
	pauses := Pauses{}
	for {
		next, err := k.beat()
		if err != nil {
			log.Printf("no heartbeat: %v", err)
			next = min(pauses.Next(), hasty)
		} else {
			pauses = Pauses{}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.hurry:
		case <-time.After(next):
		}
	}
}

// Only a hint, but a quick one. What it misses a heartbeat tells.
func (k *Keeper) directives(ctx context.Context) error {
	for pauses := (Pauses{}); ctx.Err() == nil; {
		opened := time.Now()
		stream, err := k.Client.WatchDirectives(ctx, &pb.WatchDirectivesRequest{WorkerId: k.ID})
		for err == nil {
			var directive *pb.Directive
			if directive, err = stream.Recv(); err == nil {
				if directive.Name == "" && directive.Kind == pb.Directive_CONTINUE {
					k.hasten() // it has opened; what came before is not on it
				}
				k.obey(directive)
			}
		}
		if time.Since(opened) > steady {
			pauses = Pauses{} // not before: a server that drains ends each at once
		}
		select {
		case <-ctx.Done():
		case <-time.After(pauses.Next()):
		}
	}
	return nil
}

// OPERATION_DELETED and DRAIN stop nothing: what runs may come to its end.
func (k *Keeper) obey(directive *pb.Directive) {
	k.mu.Lock()
	job := k.jobs[string(directive.LeaseToken)]
	k.mu.Unlock()
	if job == nil {
		return
	}
	switch directive.Kind {
	case pb.Directive_CANCEL_REQUESTED:
		job.stop(ErrCancelled)
	case pb.Directive_LEASE_LOST:
		job.lose()
	}
}

func (k *Keeper) held() []*Job {
	k.mu.Lock()
	defer k.mu.Unlock()
	jobs := make([]*Job, 0, len(k.jobs))
	for _, job := range k.jobs {
		jobs = append(jobs, job)
	}
	return jobs
}

func (k *Keeper) hasten() {
	select {
	case k.hurry <- struct{}{}:
	default:
	}
}
