"""Checks Google's Python client over HTTP/JSON.

Uses `google.api_core.operations_v1.AbstractOperationsClient` with its REST transport, with
its built-in bindings and with those of operations.proto. Prints one line for each check
and exits with 1 if one failed. tests/clients/run runs it in a venv of requirements.txt.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

import grpc
from google.api_core import exceptions, operation, operations_v1
from google.api_core.operations_v1.transports import rest
from google.auth import credentials
from google.longrunning import operations_pb2
from google.protobuf import json_format, struct_pb2, wrappers_pb2
from google.rpc import code_pb2
from google_api_core_check import DOMAIN, POLLING, Server, State, create_files

from longrunning.demo.v1 import checksum_pb2
from longrunning.v1 import metadata_pb2, worker_pb2, worker_pb2_grpc

# The client has bindings for {parent}/operations/{id} only. These are for names without a
# parent, as documented in docs/clients.md.
PROTO_BINDINGS = {
    "google.longrunning.Operations.ListOperations": [
        {"method": "get", "uri": "/v1/{name=operations}"}
    ],
    "google.longrunning.Operations.GetOperation": [
        {"method": "get", "uri": "/v1/{name=operations/**}"}
    ],
    "google.longrunning.Operations.DeleteOperation": [
        {"method": "delete", "uri": "/v1/{name=operations/**}"}
    ],
    "google.longrunning.Operations.CancelOperation": [
        {"method": "post", "uri": "/v1/{name=operations/**}:cancel", "body": "*"}
    ],
}


class Clients:
    """The server and its REST clients."""

    def __init__(self, server):
        self.server = server
        self.default = self.client()
        self.proto = self.client(http_options=PROTO_BINDINGS)
        self.workers = worker_pb2_grpc.OperationWorkerStub(grpc.insecure_channel(server.workers))

    def client(self, **options):
        transport = rest.OperationsRestTransport(
            # The transport ignores the argument url_scheme.
            host=f"http://{self.server.address}",
            credentials=credentials.AnonymousCredentials(),
            **options,
        )
        return operations_v1.AbstractOperationsClient(transport=transport)

    def create(self, parent, operation_id):
        """Creates a self-executed operation; returns its name and its lease."""
        created = self.workers.CreateOperation(
            worker_pb2.CreateOperationRequest(
                parent=parent,
                operation_id=operation_id,
                self_executed={"worker_id": "http_check"},
            )
        )
        return created.operation.name, created.lease

    def finish(self, lease, response):
        request = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token)
        request.response.Pack(response)
        return self.workers.FinishOperation(request)

    def call(self, method, path, body=None):
        """Calls the server by the standard library; returns the JSON of the response."""
        request = urllib.request.Request(
            f"http://{self.server.address}{path}",
            method=method,
            data=body and json.dumps(body).encode(),
            headers={"content-type": "application/json"} if body else {},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


INFO = "type.googleapis.com/google.rpc.ErrorInfo"


@contextlib.contextmanager
def expect_error(kind, reason):
    """Expects this exception of Google's client with exactly one ErrorInfo."""
    try:
        yield
    except kind as error:
        infos = [detail for detail in error.details if detail["@type"] == INFO]
        assert len(infos) == 1, f"{len(infos)} ErrorInfo in {error!r}"
        assert (error.reason, error.domain) == (reason, DOMAIN), (error.reason, error.domain)
        return
    raise AssertionError(f"no {kind.__name__} was raised")


CHECKS = []


def check(claim):
    def register(function):
        CHECKS.append((claim, function))
        return function

    return register


@check("the built-in bindings get, list, cancel and delete an operation of a project")
def of_a_project(clients):
    name, _ = clients.create("projects/p", "mine")
    assert name == "projects/p/operations/mine"
    got = clients.default.get_operation(name=name)
    assert (got.name, got.done) == (name, False)
    metadata = metadata_pb2.OperationMetadata()
    assert got.metadata.Unpack(metadata), got.metadata.type_url
    assert metadata.state == State.RUNNING
    listed = [one.name for one in clients.default.list_operations(name="projects/p", filter_="")]
    assert listed == [name], listed
    clients.default.cancel_operation(name=name)
    assert clients.default.get_operation(name=name).metadata.Unpack(metadata)
    assert metadata.cancel_requested
    clients.default.delete_operation(name=name)
    with expect_error(exceptions.NotFound, "OPERATION_NOT_FOUND"):
        clients.default.get_operation(name=name)


@check("the built-in bindings list operations without a parent")
def of_the_root(clients):
    name, _ = clients.create("", "root")
    assert name in [one.name for one in clients.default.list_operations(name="operations", filter_="")]


@check("the bindings of operations.proto get, list and delete operations without a parent")
def without_a_project(clients):
    name, lease = clients.create("", "plain")
    assert clients.proto.get_operation(name=name).name == name
    assert name in [one.name for one in clients.proto.list_operations(name="operations", filter_="")]
    clients.finish(lease, wrappers_pb2.StringValue(value="größe"))
    text = wrappers_pb2.StringValue()
    assert clients.proto.get_operation(name=name).response.Unpack(text)
    assert text.value == "größe"
    clients.proto.delete_operation(name=name)
    with expect_error(exceptions.NotFound, "OPERATION_NOT_FOUND"):
        clients.proto.delete_operation(name=name)


@check("the pager follows page tokens")
def pages(clients):
    names = [clients.create("projects/paged", f"p{number:03}")[0] for number in range(250)]
    pager = clients.default.list_operations(name="projects/paged", filter_="", page_size=100)
    sizes, listed = [], []
    for page in pager.pages:
        sizes.append(len(page.operations))
        listed += [one.name for one in page.operations]
    assert sizes == [100, 100, 50], sizes
    assert listed == names[::-1]
    return " + ".join(map(str, sizes))


@check("a future over REST returns the result")
def follow(clients):
    created = clients.server.create("tree")
    future = operation.Operation(
        created,
        lambda **_: clients.proto.get_operation(name=created.name),
        lambda **_: clients.proto.cancel_operation(name=created.name),
        checksum_pb2.Checksum,
        metadata_type=metadata_pb2.OperationMetadata,
        polling=POLLING,
    )
    result = future.result(timeout=120)
    assert result.files > 0 and future.metadata.state == State.SUCCEEDED
    return f"{result.files} files"


@check("an error has code, reason, domain and metadata")
def errors(clients):
    with expect_error(exceptions.BadRequest, "INVALID_PAGE_TOKEN"):
        list(clients.default.list_operations(name="projects/p", filter_="", page_token="x"))


@check("get of a failed operation succeeds and returns its error")
def failed(clients):
    name, lease = clients.create("projects/p", "failed")
    request = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token)
    request.failure.error.code = code_pb2.DATA_LOSS
    request.failure.error.message = "the disk is gone"
    clients.workers.FinishOperation(request)
    got = clients.default.get_operation(name=name)
    assert got.done and got.error.code == code_pb2.DATA_LOSS, got
    assert got.error.message == "the disk is gone"


@check("a wait by the standard library returns when the operation is done")
def wait(clients):
    name, lease = clients.create("projects/p", "waited")
    start = time.monotonic()
    still = clients.call("POST", f"/v1/{name}:wait", {"timeout": "0.200s"})
    assert still["done"] is False and 0.15 < time.monotonic() - start < 10
    responses = []
    waiting = threading.Thread(
        target=lambda: responses.append(clients.call("POST", f"/v2/{name}:wait", {"timeout": "60s"}))
    )
    waiting.start()
    result = struct_pb2.Struct()
    result["answer"] = 42
    clients.finish(lease, result)
    waiting.join(60)
    assert responses[0]["done"] and responses[0]["response"]["value"] == {"answer": 42}, responses
    parsed = operations_pb2.Operation()
    json_format.ParseDict(responses[0], parsed)
    assert parsed.response.Is(struct_pb2.Struct.DESCRIPTOR)


@check("a watch by the standard library streams states until the operation is done")
def watch(clients):
    name, lease = clients.create("projects/p", "watched")
    url = f"http://{clients.server.address}/v1/{name}:watch"
    states = []
    with contextlib.closing(urllib.request.urlopen(url, timeout=60)) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        for line in stream:
            if not line.startswith(b"data: "):
                continue
            state = json.loads(line.removeprefix(b"data: "))
            states.append(state["done"])
            if len(states) == 1:
                clients.finish(lease, struct_pb2.Struct())
    assert states == [False, True], states


def main():
    failures = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-http-") as scratch:
        create_files(pathlib.Path(scratch))
        server = Server(scratch)
        try:
            clients = Clients(server)
            for claim, function in CHECKS:
                try:
                    detail = function(clients)
                    print(f"  ok      {claim}" + (f": {detail}" if detail else ""), flush=True)
                except Exception:
                    failures += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
            if failures:
                print("the last log lines of the server:\n" + "".join(server.log[-20:]))
        finally:
            server.process.kill()
            server.process.wait()
    print(f"\nAbstractOperationsClient checks: {len(CHECKS) - failures} ok, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
