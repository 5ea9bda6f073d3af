// Command service has a slow method that it executes itself: ExportBooks creates an
// operation, returns it, and writes the file in the background.
//
//	LONGRUNNING_WORKERS=127.0.0.1:8471 go run ./service DIRECTORY
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/csv"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"longrunning.dev/examples/gen/bookstorepb"
	pb "longrunning.dev/examples/gen/longrunningpb"
	"longrunning.dev/examples/leases"
)

const rowsPerCheck = 1000 // rows between two checks for cancellation, about a millisecond

type bookstore struct {
	bookstorepb.UnimplementedBookstoreServer
	manager   *leases.Manager
	directory string
	exports   errgroup.Group
}

func (b *bookstore) ExportBooks(_ context.Context, request *bookstorepb.ExportBooksRequest) (*longrunningpb.Operation, error) {
	if request.Rows < 1 {
		return nil, status.Error(codes.InvalidArgument, "rows: must be at least 1")
	}
	metadata, err := anypb.New(&bookstorepb.ExportBooksMetadata{})
	if err != nil {
		return nil, err
	}
	create := &pb.CreateOperationRequest{
		// Makes retries of this call and of the client's call idempotent.
		RequestId:     cmp.Or(request.RequestId, rand.Text()),
		Method:        bookstorepb.Bookstore_ExportBooks_FullMethodName[1:],
		Labels:        map[string]string{"rows": strconv.FormatInt(request.Rows, 10)},
		Metadata:      metadata,
		LeaseDuration: durationpb.New(10 * time.Second),
		Execution: &pb.CreateOperationRequest_SelfExecuted_{
			SelfExecuted: &pb.CreateOperationRequest_SelfExecuted{WorkerId: b.manager.ID},
		},
	}
	var created *pb.CreateOperationResponse
	err = leases.Retry(func(ctx context.Context) (err error) {
		created, err = b.manager.Client.CreateOperation(ctx, create)
		return err
	}, func() bool { return false })
	if err != nil {
		return nil, err // passes on details such as REQUEST_ID_REUSED
	}
	// A repeated request returns the lease of a job that is already running.
	if created.Lease != nil {
		if job := b.manager.Track(created.Lease); job != nil {
			b.exports.Go(func() error {
				b.manager.Execute(job, func(ctx context.Context, job *leases.Job) (proto.Message, error) {
					return b.export(ctx, job, request.Rows)
				})
				return nil
			})
		}
	}
	return created.Operation, nil
}

func (b *bookstore) export(ctx context.Context, job *leases.Job, rows int64) (proto.Message, error) {
	target := filepath.Join(b.directory, path.Base(job.Lease.Name)+".csv")
	part := target + ".part"
	file, err := os.Create(part)
	if err != nil {
		return nil, err
	}
	defer os.Remove(part) // fails after a successful rename
	defer file.Close()
	buffer := bufio.NewWriter(file)
	table := csv.NewWriter(buffer)
	err = table.Write([]string{"id", "title", "price"})
	for row := int64(0); err == nil && row < rows; row++ {
		if row%rowsPerCheck == 0 {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			metadata, err := anypb.New(&bookstorepb.ExportBooksMetadata{
				ProgressPercent: int32(100 * row / rows), Rows: row,
			})
			if err != nil {
				return nil, err
			}
			job.UpdateReport(func(report *pb.LeaseHeartbeat) { report.Metadata = metadata })
		}
		err = table.Write([]string{
			strconv.FormatInt(row, 10), fmt.Sprintf("Book %d", row), fmt.Sprintf("%.2f", float64(row%9000)/100),
		})
	}
	table.Flush()
	if err := cmp.Or(err, table.Error(), buffer.Flush(), file.Close()); err != nil {
		return nil, err
	}
	metadata, err := anypb.New(&bookstorepb.ExportBooksMetadata{ProgressPercent: 100, Rows: rows})
	if err != nil {
		return nil, err
	}
	job.UpdateReport(func(report *pb.LeaseHeartbeat) { report.Metadata = metadata })
	// Renamed when complete, so that no reader sees a partial file.
	return &bookstorepb.ExportBooksResponse{Path: target, Rows: rows}, os.Rename(part, target)
}

func run(directory string) error {
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

	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("BOOKSTORE_LISTEN"), "127.0.0.1:8480"))
	if err != nil {
		return err
	}
	log.Printf("listening bookstore=%s", listener.Addr())
	server, store := grpc.NewServer(), &bookstore{manager: manager, directory: directory}
	bookstorepb.RegisterBookstoreServer(server, store)

	// Leases must be renewed until the last export has ended, after stop.
	leasesCtx, stopLeases := context.WithCancel(context.Background())
	maintenance := errgroup.Group{}
	maintenance.Go(func() error { return manager.Run(leasesCtx) })
	context.AfterFunc(stop, server.GracefulStop)
	err = server.Serve(listener)
	manager.Release() // self-executed operations then fail with WORKER_LOST
	err = cmp.Or(err, store.exports.Wait())
	stopLeases()
	return cmp.Or(err, maintenance.Wait())
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: service DIRECTORY")
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}
