// Command service has a slow method, which it executes itself: ExportBooks
// creates an operation, answers with it, and writes the file while clients
// follow.
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

const step = 1000 // rows between two looks at whether to stop: about a millisecond

type bookstore struct {
	bookstorepb.UnimplementedBookstoreServer
	keeper    *leases.Keeper
	directory string
	exports   errgroup.Group
}

func (b *bookstore) ExportBooks(_ context.Context, asked *bookstorepb.ExportBooksRequest) (*longrunningpb.Operation, error) {
	if asked.Rows < 1 {
		return nil, status.Error(codes.InvalidArgument, "rows: at least 1")
	}
	metadata, err := anypb.New(&bookstorepb.ExportBooksMetadata{})
	if err != nil {
		return nil, err
	}
	request := &pb.CreateOperationRequest{
		// It makes a second try after a lost answer safe; ours as the client's.
		RequestId:     cmp.Or(asked.RequestId, rand.Text()),
		Method:        bookstorepb.Bookstore_ExportBooks_FullMethodName[1:],
		Labels:        map[string]string{"rows": strconv.FormatInt(asked.Rows, 10)},
		Metadata:      metadata,
		LeaseDuration: durationpb.New(10 * time.Second),
		Execution: &pb.CreateOperationRequest_SelfExecuted_{
			SelfExecuted: &pb.CreateOperationRequest_SelfExecuted{WorkerId: b.keeper.ID},
		},
	}
	var created *pb.CreateOperationResponse
	err = leases.Tries(func(ctx context.Context) (err error) {
		created, err = b.keeper.Client.CreateOperation(ctx, request)
		return err
	}, func() bool { return false })
	if err != nil {
		return nil, err // with its details, such as REQUEST_ID_REUSED
	}
	// The lease of a request that came before is held by us; its work runs.
	if created.Lease != nil {
		if job := b.keeper.Take(created.Lease); job != nil {
			b.exports.Go(func() error {
				b.keeper.Execute(job, func(ctx context.Context, job *leases.Job) (proto.Message, error) {
					return b.export(ctx, job, asked.Rows)
				})
				return nil
			})
		}
	}
	return created.Operation, nil
}

func (b *bookstore) export(ctx context.Context, job *leases.Job, rows int64) (proto.Message, error) {
	to := filepath.Join(b.directory, path.Base(job.Lease.Name)+".csv")
	part := to + ".part"
	file, err := os.Create(part)
	if err != nil {
		return nil, err
	}
	defer os.Remove(part) // gone already, if all went well
	defer file.Close()
	buffer := bufio.NewWriter(file)
	table := csv.NewWriter(buffer)
	err = table.Write([]string{"id", "title", "price"})
	for row := int64(0); err == nil && row < rows; row++ {
		if row%step == 0 {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			metadata, err := anypb.New(&bookstorepb.ExportBooksMetadata{
				ProgressPercent: int32(100 * row / rows), Rows: row,
			})
			if err != nil {
				return nil, err
			}
			job.Tell(func(report *pb.LeaseHeartbeat) { report.Metadata = metadata })
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
	job.Tell(func(report *pb.LeaseHeartbeat) { report.Metadata = metadata })
	// No reader ever sees half a file.
	return &bookstorepb.ExportBooksResponse{Path: to, Rows: rows}, os.Rename(part, to)
}

func run(directory string) error {
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

	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("BOOKSTORE_LISTEN"), "127.0.0.1:8480"))
	if err != nil {
		return err
	}
	log.Printf("listening bookstore=%s", listener.Addr())
	server, store := grpc.NewServer(), &bookstore{keeper: keeper, directory: directory}
	bookstorepb.RegisterBookstoreServer(server, store)

	// Leases are kept up to the end of the last export, so that takes longer.
	kept, through := context.WithCancel(context.Background())
	keeping := errgroup.Group{}
	keeping.Go(func() error { return keeper.Run(kept) })
	context.AfterFunc(stop, server.GracefulStop)
	err = server.Serve(listener)
	keeper.Release() // ends them as WORKER_LOST, because nobody else can do it
	err = cmp.Or(err, store.exports.Wait())
	through()
	return cmp.Or(err, keeping.Wait())
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: service DIRECTORY")
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}
