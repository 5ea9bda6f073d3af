"""Google's own Python client follows operations over HTTP/JSON.

The server is that of google_api_core_check; the client is
`google.api_core.operations_v1.AbstractOperationsClient` with its REST transport,
by the bindings that it has built in and by those of operations.proto. One line
for each check; exit code 1 if one failed. Run by tests/clients/run in a venv of
requirements.txt.
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
from google_api_core_check import DOMAIN, POLLING, Server, State, lay_out

from longrunning.demo.v1 import checksum_pb2
from longrunning.v1 import metadata_pb2, worker_pb2, worker_pb2_grpc

# The client has bindings for {parent}/operations/{id} only; these are for names
# without a parent. The one override that docs/clients.md tells people.
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


class Site:
    """The server, and its REST clients."""

    def __init__(self, server):
        self.server = server
        self.default = self.client()
        self.proto = self.client(http_options=PROTO_BINDINGS)
        self.workers = worker_pb2_grpc.OperationWorkerStub(grpc.insecure_channel(server.workers))

    def client(self, **options):
        transport = rest.OperationsRestTransport(
            # The argument url_scheme is heeded nowhere.
            host=f"http://{self.server.address}",
            credentials=credentials.AnonymousCredentials(),
            **options,
        )
        return operations_v1.AbstractOperationsClient(transport=transport)

    def create(self, parent, operation_id):
        """An operation that this script executes, with its lease."""
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
        """The JSON of an answer, by the standard library."""
        request = urllib.request.Request(
            f"http://{self.server.address}{path}",
            method=method,
            data=body and json.dumps(body).encode(),
            headers={"content-type": "application/json"} if body else {},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


INFO = "type.googleapis.com/google.rpc.ErrorInfo"


@contextlib.contextmanager
def raises(kind, reason):
    """The call fails with this exception of Google's and exactly one ErrorInfo."""
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


@check("its built-in bindings get, list, cancel and delete an operation of a project")
def of_a_project(site):
    name, _ = site.create("projects/p", "mine")
    assert name == "projects/p/operations/mine"
    got = site.default.get_operation(name=name)
    assert (got.name, got.done) == (name, False)
    metadata = metadata_pb2.OperationMetadata()
    assert got.metadata.Unpack(metadata), got.metadata.type_url
    assert metadata.state == State.RUNNING
    listed = [one.name for one in site.default.list_operations(name="projects/p", filter_="")]
    assert listed == [name], listed
    site.default.cancel_operation(name=name)
    assert site.default.get_operation(name=name).metadata.Unpack(metadata)
    assert metadata.cancel_requested
    site.default.delete_operation(name=name)
    with raises(exceptions.NotFound, "OPERATION_NOT_FOUND"):
        site.default.get_operation(name=name)


@check("it lists the root as operations/operations")
def of_the_root(site):
    name, _ = site.create("", "root")
    assert name in [one.name for one in site.default.list_operations(name="operations", filter_="")]


@check("with the bindings of operations.proto it does the same without a project")
def without_a_project(site):
    name, lease = site.create("", "plain")
    assert site.proto.get_operation(name=name).name == name
    assert name in [one.name for one in site.proto.list_operations(name="operations", filter_="")]
    site.finish(lease, wrappers_pb2.StringValue(value="größe"))
    text = wrappers_pb2.StringValue()
    assert site.proto.get_operation(name=name).response.Unpack(text)
    assert text.value == "größe"
    site.proto.delete_operation(name=name)
    with raises(exceptions.NotFound, "OPERATION_NOT_FOUND"):
        site.proto.delete_operation(name=name)


@check("its pager goes from page to page")
def pages(site):
    names = [site.create("projects/paged", f"p{number:03}")[0] for number in range(250)]
    pager = site.default.list_operations(name="projects/paged", filter_="", page_size=100)
    sizes, listed = [], []
    for page in pager.pages:
        sizes.append(len(page.operations))
        listed += [one.name for one in page.operations]
    assert sizes == [100, 100, 50], sizes
    assert listed == names[::-1]
    return " + ".join(map(str, sizes))


@check("a future of an operation follows it over REST to its result")
def follow(site):
    created = site.server.create("tree")
    future = operation.Operation(
        created,
        lambda **_: site.proto.get_operation(name=created.name),
        lambda **_: site.proto.cancel_operation(name=created.name),
        checksum_pb2.Checksum,
        metadata_type=metadata_pb2.OperationMetadata,
        polling=POLLING,
    )
    result = future.result(timeout=120)
    assert result.files > 0 and future.metadata.state == State.SUCCEEDED
    return f"{result.files} files"


@check("an error has code, reason, domain and metadata")
def errors(site):
    with raises(exceptions.BadRequest, "INVALID_PAGE_TOKEN"):
        list(site.default.list_operations(name="projects/p", filter_="", page_token="x"))


@check("a failed operation is a result and not an error of the call")
def failed(site):
    name, lease = site.create("projects/p", "failed")
    request = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token)
    request.failure.error.code = code_pb2.DATA_LOSS
    request.failure.error.message = "the disk is gone"
    site.workers.FinishOperation(request)
    got = site.default.get_operation(name=name)
    assert got.done and got.error.code == code_pb2.DATA_LOSS, got
    assert got.error.message == "the disk is gone"


@check("a wait by the standard library ends with the operation")
def wait(site):
    name, lease = site.create("projects/p", "waited")
    began = time.monotonic()
    still = site.call("POST", f"/v1/{name}:wait", {"timeout": "0.200s"})
    assert still["done"] is False and 0.15 < time.monotonic() - began < 10
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(site.call("POST", f"/v2/{name}:wait", {"timeout": "60s"}))
    )
    waiting.start()
    result = struct_pb2.Struct()
    result["answer"] = 42
    site.finish(lease, result)
    waiting.join(60)
    assert answers[0]["done"] and answers[0]["response"]["value"] == {"answer": 42}, answers
    parsed = operations_pb2.Operation()
    json_format.ParseDict(answers[0], parsed)
    assert parsed.response.Is(struct_pb2.Struct.DESCRIPTOR)


@check("a watch by the standard library sees progress and the end")
def watch(site):
    name, lease = site.create("projects/p", "watched")
    url = f"http://{site.server.address}/v1/{name}:watch"
    states = []
    with contextlib.closing(urllib.request.urlopen(url, timeout=60)) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        for line in stream:
            if not line.startswith(b"data: "):
                continue
            state = json.loads(line.removeprefix(b"data: "))
            states.append(state["done"])
            if len(states) == 1:
                site.finish(lease, struct_pb2.Struct())
    assert states == [False, True], states


def main():
    failures = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-http-") as scratch:
        lay_out(pathlib.Path(scratch))
        server = Server(scratch)
        try:
            site = Site(server)
            for claim, function in CHECKS:
                try:
                    detail = function(site)
                    print(f"  ok      {claim}" + (f": {detail}" if detail else ""), flush=True)
                except Exception:
                    failures += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
            if failures:
                print("the last lines of the server:\n" + "".join(server.log[-20:]))
        finally:
            server.process.kill()
            server.process.wait()
    print(f"\nAbstractOperationsClient checks: {len(CHECKS) - failures} ok, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
