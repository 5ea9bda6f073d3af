// A straightforward google.longrunning.Operations in Go: messages in
// a map under an RWMutex, served by grpc-go with default settings.
//
// `grpc-go STORED` prints `listening ADDRESS`. GetOperation of `waiters` has the number
// of open waits as its name; DeleteOperation does nothing and so is the empty unary.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	pb "cloud.google.com/go/longrunning/autogen/longrunningpb"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

type entry struct {
	operation *pb.Operation
	finished  chan struct{}
}

type server struct {
	pb.UnimplementedOperationsServer
	mutex   sync.RWMutex
	entries map[string]*entry
	// In the order of creation.
	names   []string
	waiters atomic.Int64
}

// A stored message is never changed, only replaced: so it can be encoded unlocked.
func (s *server) get(name string) (*pb.Operation, chan struct{}, error) {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	found, ok := s.entries[name]
	if !ok {
		return nil, nil, status.Error(codes.NotFound, name)
	}
	return found.operation, found.finished, nil
}

func (s *server) GetOperation(_ context.Context, request *pb.GetOperationRequest) (*pb.Operation, error) {
	if request.GetName() == "waiters" {
		return &pb.Operation{Name: strconv.FormatInt(s.waiters.Load(), 10)}, nil
	}
	operation, _, err := s.get(request.GetName())
	return operation, err
}

func (s *server) WaitOperation(ctx context.Context, request *pb.WaitOperationRequest) (*pb.Operation, error) {
	operation, finished, err := s.get(request.GetName())
	if err != nil || operation.GetDone() {
		return operation, err
	}
	s.waiters.Add(1)
	defer s.waiters.Add(-1)
	select {
	case <-finished:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	operation, _, err = s.get(request.GetName())
	return operation, err
}

func (s *server) CancelOperation(_ context.Context, request *pb.CancelOperationRequest) (*emptypb.Empty, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	found, ok := s.entries[request.GetName()]
	if !ok {
		return nil, status.Error(codes.NotFound, request.GetName())
	}
	if !found.operation.GetDone() {
		done := proto.Clone(found.operation).(*pb.Operation)
		done.Done = true
		done.Result = &pb.Operation_Error{Error: &rpcstatus.Status{Code: 1, Message: "cancelled"}}
		found.operation = done
		close(found.finished)
	}
	return &emptypb.Empty{}, nil
}

func (s *server) DeleteOperation(context.Context, *pb.DeleteOperationRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *server) ListOperations(_ context.Context, request *pb.ListOperationsRequest) (*pb.ListOperationsResponse, error) {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	page := &pb.ListOperationsResponse{}
	for i := len(s.names) - 1; i >= 0 && len(page.Operations) < int(request.GetPageSize()); i-- {
		page.Operations = append(page.Operations, s.entries[s.names[i]].operation)
	}
	return page, nil
}

func main() {
	bytes, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var stored pb.ListOperationsResponse
	if err := proto.Unmarshal(bytes, &stored); err != nil {
		log.Fatal(err)
	}
	served := &server{entries: map[string]*entry{}}
	for _, operation := range stored.GetOperations() {
		served.entries[operation.GetName()] = &entry{operation, make(chan struct{})}
		served.names = append(served.names, operation.GetName())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", listener.Addr())
	stack := grpc.NewServer()
	pb.RegisterOperationsServer(stack, served)
	log.Fatal(stack.Serve(listener))
}
