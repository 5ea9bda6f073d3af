// Command worker leases operations from a queue, executes them and reports their
// results. Replace copyRows with your own work. SIGTERM drains the worker.
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
	concurrency = 4
	pollTimeout = 30 * time.Second
)

// The slow work, which resumes from the checkpoint of an earlier attempt. Pass
// job.Lease.Attempt to other systems as a fencing token: the higher number wins.
func copyRows(ctx context.Context, job *leases.Job) (proto.Message, error) {
	var input, checkpoint structpb.Struct
	if err := job.Lease.Input.UnmarshalTo(&input); err != nil {
		return nil, err
	}
	if job.Lease.Checkpoint != nil {
		if err := job.Lease.Checkpoint.UnmarshalTo(&checkpoint); err != nil {
			return nil, err
		}
	}
	first, rows := int64(checkpoint.Fields["next"].GetNumberValue()), int64(input.Fields["rows"].GetNumberValue())
	breaksAt, breaks := input.Fields["breaks_at"]
	log.Printf("%s begins attempt %d at row %d", job.Lease.Name, job.Lease.Attempt, first)
	for row := first; row < rows; row++ {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond): // the slow part
		}
		if breaks && job.Lease.Attempt == 1 && row == int64(breaksAt.GetNumberValue()) {
			return nil, fmt.Errorf("source disconnected: %w", leases.ErrRetryable)
		}
		next, err := leases.Pack(map[string]any{"next": row + 1})
		if err != nil {
			return nil, err
		}
		job.UpdateReport(func(report *pb.LeaseHeartbeat) {
			report.Progress = &pb.Progress{DoneUnits: row + 1, TotalUnits: rows, Unit: "rows"}
			report.Checkpoint = next
		})
	}
	return structpb.NewStruct(map[string]any{"rows": rows, "first": first, "attempt": job.Lease.Attempt})
}

// Leases and executes one operation after the other. Does not cancel the call on
// stop, because its response may be on its way; Manager.Drain makes the server end it.
func pollQueue(stop context.Context, manager *leases.Manager) error {
	request := &pb.LeaseOperationsRequest{
		Queues: []string{cmp.Or(os.Getenv("QUEUE"), "copy")}, WorkerId: manager.ID, WaitTimeout: durationpb.New(pollTimeout),
		ConfirmWithin: durationpb.New(leases.ConfirmTimeout),
	}
	for backoff := (leases.Backoff{}); stop.Err() == nil; {
		called := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), pollTimeout+5*time.Second)
		response, err := manager.Client.LeaseOperations(ctx, request)
		cancel()
		if leases.IsTransient(err) {
			log.Printf("LeaseOperations failed, retrying: %v", err)
			time.Sleep(backoff.NextDelay())
			continue
		} else if err != nil {
			return err
		}
		if len(response.Leases) == 0 && time.Since(called) < time.Second {
			time.Sleep(backoff.NextDelay()) // the server could not hold the call
			continue
		}
		backoff = leases.Backoff{}
		for _, lease := range response.Leases {
			if job := manager.Track(lease); job != nil {
				manager.ExecuteConfirmed(job, copyRows)
			}
		}
	}
	return nil
}

func run() error {
	drainTimeout, err := time.ParseDuration(cmp.Or(os.Getenv("DRAIN"), "10s"))
	if err != nil {
		return err
	}
	stop, unregister := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer unregister()
	address := cmp.Or(os.Getenv("LONGRUNNING_WORKERS"), "127.0.0.1:8471")
	channel, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer channel.Close()
	host, _ := os.Hostname()
	manager := leases.NewManager(pb.NewOperationWorkerClient(channel), fmt.Sprintf("%s/%d", host, os.Getpid()))

	// Leases must be renewed until the last job has ended, after stop.
	leasesCtx, stopLeases := context.WithCancel(context.Background())
	maintenance, pollers := errgroup.Group{}, errgroup.Group{}
	maintenance.Go(func() error { return manager.Run(leasesCtx) })
	context.AfterFunc(stop, func() {
		manager.Drain()
		time.AfterFunc(drainTimeout, manager.Release)
	})
	for range concurrency {
		pollers.Go(func() error { return pollQueue(stop, manager) })
	}
	err = pollers.Wait()
	stopLeases()
	return cmp.Or(err, maintenance.Wait())
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
