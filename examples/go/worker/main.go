// Command worker takes operations from a queue, works on them, and says how it
// ended. Put work of your own in the place of copyRows. SIGTERM drains it.
//
//	LONGRUNNING_WORKERS=127.0.0.1:8471 QUEUE=copy go run ./worker
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "longrunning.dev/examples/gen/longrunningpb"
	"longrunning.dev/examples/leases"
)

const (
	atOnce = 4
	poll   = 30 * time.Second
)

// Slow work, which goes on where the attempt before it left off. Pass
// job.Lease.Attempt to systems that it writes to: the higher number wins.
func copyRows(ctx context.Context, job *leases.Job) (proto.Message, error) {
	var asked, kept structpb.Struct
	if err := job.Lease.Input.UnmarshalTo(&asked); err != nil {
		return nil, err
	}
	if job.Lease.Checkpoint != nil {
		if err := job.Lease.Checkpoint.UnmarshalTo(&kept); err != nil {
			return nil, err
		}
	}
	first, rows := int64(kept.Fields["next"].GetNumberValue()), int64(asked.Fields["rows"].GetNumberValue())
	breaksAt, breaks := asked.Fields["breaks_at"]
	log.Printf("%s begins attempt %d at row %d", job.Lease.Name, job.Lease.Attempt, first)
	for row := first; row < rows; row++ {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond): // the slow part
		}
		if breaks && job.Lease.Attempt == 1 && row == int64(breaksAt.GetNumberValue()) {
			return nil, fmt.Errorf("the source went away: %w", leases.ErrRetryable)
		}
		checkpoint, err := leases.Pack(map[string]any{"next": row + 1})
		if err != nil {
			return nil, err
		}
		job.Tell(func(report *pb.LeaseHeartbeat) {
			report.Progress = &pb.Progress{DoneUnits: row + 1, TotalUnits: rows, Unit: "rows"}
			report.Checkpoint = checkpoint
		})
	}
	return structpb.NewStruct(map[string]any{"rows": rows, "first": first, "attempt": job.Lease.Attempt})
}

// Takes one operation after the other. It never gives up the call, because the
// leases of a lost answer are nobody's for a while; Keeper.Drain ends it.
func takeTurns(stop context.Context, keeper *leases.Keeper) error {
	request := &pb.LeaseOperationsRequest{
		Queues: []string{cmp.Or(os.Getenv("QUEUE"), "copy")}, WorkerId: keeper.ID, WaitTimeout: durationpb.New(poll),
	}
	for pauses := (leases.Pauses{}); stop.Err() == nil; {
		asked := time.Now()
		ctx, done := context.WithTimeout(context.Background(), poll+5*time.Second)
		answer, err := keeper.Client.LeaseOperations(ctx, request)
		done()
		if leases.Again(err) {
			log.Printf("%v; trying again", err)
			time.Sleep(pauses.Next())
			continue
		} else if err != nil {
			return err
		}
		if len(answer.Leases) == 0 && time.Since(asked) < time.Second {
			time.Sleep(pauses.Next()) // a server that lets nobody wait
			continue
		}
		pauses = leases.Pauses{}
		for _, lease := range answer.Leases {
			keeper.Execute(keeper.Take(lease), copyRows)
		}
	}
	return nil
}

func run() error {
	drain, err := time.ParseDuration(cmp.Or(os.Getenv("DRAIN"), "10s"))
	if err != nil {
		return err
	}
	stop, end := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer end()
	address := cmp.Or(os.Getenv("LONGRUNNING_WORKERS"), "127.0.0.1:8471")
	channel, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer channel.Close()
	host, _ := os.Hostname()
	keeper := leases.New(pb.NewOperationWorkerClient(channel), fmt.Sprintf("%s/%d", host, os.Getpid()))

	// Leases are kept up to the end of the last job, so that takes longer.
	kept, through := context.WithCancel(context.Background())
	keeping, slots := errgroup.Group{}, errgroup.Group{}
	keeping.Go(func() error { return keeper.Run(kept) })
	context.AfterFunc(stop, func() {
		keeper.Drain()
		time.AfterFunc(drain, keeper.Release)
	})
	for range atOnce {
		slots.Go(func() error { return takeTurns(stop, keeper) })
	}
	err = slots.Wait()
	through()
	return cmp.Or(err, keeping.Wait())
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
