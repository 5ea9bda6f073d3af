// A straightforward google.longrunning.Operations in C++: messages in
// a map under a lock, served by grpc++'s callback API with default settings.
//
// `grpc-cpp STORED` prints `listening ADDRESS`. GetOperation of `waiters` has the number of
// open waits as its name; DeleteOperation does nothing and so is the empty unary.

#include <atomic>
#include <fstream>
#include <iostream>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "google/longrunning/operations.grpc.pb.h"

namespace lro = google::longrunning;
using google::protobuf::Empty;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;
using grpc::Status;
using grpc::StatusCode;

namespace {

struct Waiter {
  ServerUnaryReactor* reactor;
  lro::Operation* response;
};

struct Entry {
  lro::Operation operation;
  std::vector<Waiter> waiters;
};

class Service final : public lro::Operations::CallbackService {
 public:
  explicit Service(lro::ListOperationsResponse stored) {
    for (auto& operation : *stored.mutable_operations()) {
      std::string name = operation.name();
      names_.push_back(name);
      entries_[name].operation = std::move(operation);
    }
  }

  ServerUnaryReactor* GetOperation(CallbackServerContext* context, const lro::GetOperationRequest* request,
                                   lro::Operation* response) override {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    if (request->name() == "waiters") {
      response->set_name(std::to_string(waiters_.load()));
      reactor->Finish(Status::OK);
      return reactor;
    }
    std::shared_lock lock(mutex_);
    auto found = entries_.find(request->name());
    if (found == entries_.end()) {
      lock.unlock();
      reactor->Finish(Status(StatusCode::NOT_FOUND, request->name()));
      return reactor;
    }
    *response = found->second.operation;
    lock.unlock();
    reactor->Finish(Status::OK);
    return reactor;
  }

  ServerUnaryReactor* WaitOperation(CallbackServerContext* context, const lro::WaitOperationRequest* request,
                                    lro::Operation* response) override {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    std::unique_lock lock(mutex_);
    auto found = entries_.find(request->name());
    if (found == entries_.end()) {
      lock.unlock();
      reactor->Finish(Status(StatusCode::NOT_FOUND, request->name()));
    } else if (found->second.operation.done()) {
      *response = found->second.operation;
      lock.unlock();
      reactor->Finish(Status::OK);
    } else {
      found->second.waiters.push_back({reactor, response});
      ++waiters_;
    }
    return reactor;
  }

  ServerUnaryReactor* CancelOperation(CallbackServerContext* context, const lro::CancelOperationRequest* request,
                                      Empty*) override {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    std::unique_lock lock(mutex_);
    auto found = entries_.find(request->name());
    if (found == entries_.end()) {
      lock.unlock();
      reactor->Finish(Status(StatusCode::NOT_FOUND, request->name()));
      return reactor;
    }
    Entry& entry = found->second;
    entry.operation.set_done(true);
    entry.operation.mutable_error()->set_code(1);
    entry.operation.mutable_error()->set_message("cancelled");
    std::vector<Waiter> waiters = std::move(entry.waiters);
    entry.waiters.clear();
    for (const Waiter& waiter : waiters) *waiter.response = entry.operation;
    lock.unlock();
    waiters_ -= waiters.size();
    for (const Waiter& waiter : waiters) waiter.reactor->Finish(Status::OK);
    reactor->Finish(Status::OK);
    return reactor;
  }

  ServerUnaryReactor* DeleteOperation(CallbackServerContext* context, const lro::DeleteOperationRequest*,
                                      Empty*) override {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(Status::OK);
    return reactor;
  }

  ServerUnaryReactor* ListOperations(CallbackServerContext* context, const lro::ListOperationsRequest* request,
                                     lro::ListOperationsResponse* response) override {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    {
      std::shared_lock lock(mutex_);
      for (auto name = names_.rbegin(); name != names_.rend() && response->operations_size() < request->page_size(); ++name)
        *response->add_operations() = entries_.find(*name)->second.operation;
    }
    reactor->Finish(Status::OK);
    return reactor;
  }

 private:
  std::shared_mutex mutex_;
  // In the order of creation.
  std::vector<std::string> names_;
  std::unordered_map<std::string, Entry> entries_;
  std::atomic<size_t> waiters_{0};
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "grpc-cpp STORED\n";
    return 2;
  }
  std::ifstream file(arguments[1], std::ios::binary);
  lro::ListOperationsResponse stored;
  if (!stored.ParseFromIstream(&file)) {
    std::cerr << "cannot read " << arguments[1] << "\n";
    return 1;
  }
  Service service(std::move(stored));
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server) return 1;
  std::cout << "listening 127.0.0.1:" << port << std::endl;
  server->Wait();
}
