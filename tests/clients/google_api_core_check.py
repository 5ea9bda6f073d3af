"""Checks Google's Python client against `longrunning serve --demo`.

Starts the server of $LONGRUNNING_BIN on free loopback ports. Uses
`google.api_core.operations_v1.OperationsClient`, futures of
`google.api_core.operation.from_gapic`, and raw stubs for methods that the client does
not have (WaitOperation, WatchOperation). Prints one line for each check and exits with 1
if one failed. tests/clients/run runs it in a venv of requirements.txt.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

import grpc
import grpc_tools.protoc
from google.api_core import exceptions, operation, operations_v1
from google.api_core.future import polling
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2, error_details_pb2

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
GENERATED = tempfile.TemporaryDirectory(prefix="longrunning-pb2-")


def compile_protos():
    """Compiles longrunning/** only. The google packages come from PyPI; a second copy
    would clash in the descriptor pool."""
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    ours = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("longrunning/**/*.proto"))
    code = grpc_tools.protoc.main(
        ["protoc", f"-I{PROTO}", f"-I{well_known}"]
        + [f"--python_out={GENERATED.name}", f"--grpc_python_out={GENERATED.name}"]
        + ours
    )
    if code != 0:
        sys.exit(f"protoc failed on {ours}")
    sys.path.insert(0, GENERATED.name)


compile_protos()

from longrunning.demo.v1 import checksum_pb2, checksum_pb2_grpc  # noqa: E402
from longrunning.v1 import metadata_pb2, watch_pb2, watch_pb2_grpc  # noqa: E402

DOMAIN = "longrunning.dev"
State = metadata_pb2.OperationMetadata
# The size of a sparse file: hashing it takes far longer than any check.
SLOW_BYTES = 40 << 30
# The default of the server. OperationsClient cannot request another page size.
DEFAULT_PAGE_SIZE = 100
OPEN_WAITS = 1000
GRACE_SECONDS = 20
# The gauge of open waits.
WAITERS_SAMPLE = re.compile(r"^longrunning_open_waits(?:\{[^}]*\})? (\S+)", re.MULTILINE)

# Poll faster than Google's default, which starts at one second.
POLLING = polling.DEFAULT_POLLING.with_delay(initial=0.05, maximum=0.5)


# === The server ===


class Server:
    """A process `longrunning serve --demo DIRECTORY` and its clients."""

    def __init__(self, directory, listen="127.0.0.1:0", worker_listen="127.0.0.1:0"):
        self.directory = pathlib.Path(directory)
        self.log = []
        self.process = subprocess.Popen(
            [os.environ["LONGRUNNING_BIN"], "serve", "--demo", str(directory)]
            + ["--listen", listen, "--worker-listen", worker_listen, "--admin-listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._addresses = {}
        self._ready = threading.Event()
        threading.Thread(target=self._read_log, daemon=True).start()
        if not self._ready.wait(15):
            self.process.kill()
            raise RuntimeError("the server did not become ready:\n" + "".join(self.log))
        self.address = self._addresses["clients"]
        self.workers = self._addresses["workers"]
        self.admin = self._addresses["admin"]
        channel = grpc.insecure_channel(self.address)
        self.operations = operations_v1.OperationsClient(channel)
        self.raw = operations_pb2_grpc.OperationsStub(channel)
        self.checksums = checksum_pb2_grpc.ChecksumsStub(channel)
        self.watch = watch_pb2_grpc.OperationWatchStub(channel)

    def _read_log(self):
        """Reads the log to its end: a full pipe would block the server."""
        for line in self.process.stderr:
            self.log.append(line)
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                fields = {**entry, **entry.get("fields", {})}
                if fields.get("message") == "listening":
                    for listener in ("clients", "workers", "admin"):
                        if listener in fields:
                            self._addresses[listener] = fields[listener]
                if fields.get("message") == "serving":
                    self._ready.set()

    def create(self, directory):
        """Calls the RPC that creates an operation."""
        return self.checksums.CreateChecksum(checksum_pb2.CreateChecksumRequest(directory=directory))

    def future(self, directory):
        """Returns the future that a generated Google client returns for that RPC."""
        return operation.from_gapic(
            self.create(directory),
            self.operations,
            checksum_pb2.Checksum,
            metadata_type=metadata_pb2.OperationMetadata,
            polling=POLLING,
        )

    @contextlib.contextmanager
    def slow_future(self):
        """Yields the future of a running operation; cancels it afterwards."""
        future = self.future("slow")
        try:
            wait_until(lambda: not future.done() and future.metadata.state == State.RUNNING, "the operation is running")
            yield future
        finally:
            future.cancel()

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as response:
            return response.status, response.read().decode()


def wait_until(condition, description, timeout=30):
    """Polls until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {description}"
        time.sleep(0.05)


# === Test data ===


def create_files(directory):
    """Creates the files that the server may hash."""
    tree = directory / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a-b").mkdir()
    # Sorted by bytes of the path, a-b/x < a.txt < a/x; sorted by components, a/x is first.
    (tree / "a" / "x").write_bytes(b"one")
    (tree / "a-b" / "x").write_bytes(b"two")
    (tree / "a.txt").write_bytes(b"three")
    (tree / "empty").write_bytes(b"")
    (tree / "größe").write_bytes(b"four")
    # Some file systems reject names that are not UTF-8.
    with contextlib.suppress(OSError):
        (tree / os.fsdecode(b"raw-\xff")).write_bytes(b"five")
    (tree / "link").symlink_to("a.txt")
    with open(tree / "large.bin", "wb") as large:
        large.write(os.urandom(1 << 20))
        large.truncate(128 << 20)
    (directory / "slow").mkdir()
    with open(directory / "slow" / "sparse.bin", "wb") as sparse:
        sparse.truncate(SLOW_BYTES)
    (directory / "nothing").mkdir()


def checksum_of(directory):
    """Returns files, bytes and digest as defined by longrunning/demo/v1/checksum.proto."""
    root = os.fsencode(directory)
    paths = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                paths.append(os.path.relpath(path, root))
    lines, size = hashlib.sha256(), 0
    for path in sorted(paths):
        with open(os.path.join(root, path), "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
        lines.update(digest.hexdigest().encode() + b"  " + path + b"\n")
    return len(paths), size, lines.hexdigest()


# === Errors ===


@contextlib.contextmanager
def expect_error(kind, reason):
    """Expects this exception of Google's client with exactly one ErrorInfo."""
    try:
        yield
    except kind as error:
        infos = [d for d in error.details if isinstance(d, error_details_pb2.ErrorInfo)]
        assert len(infos) == 1, f"{len(infos)} ErrorInfo in {error!r}"
        assert error.domain == DOMAIN, f"domain {error.domain}"
        assert error.reason == reason, f"expected reason {reason}, got {error.reason}"
        return
    raise AssertionError(f"no {kind.__name__} was raised")


@contextlib.contextmanager
def translate_rpc_errors():
    """Translates grpc.RpcError of raw stubs as Google's client does."""
    try:
        yield
    except grpc.RpcError as error:
        raise exceptions.from_grpc_error(error) from error


# === Checks, in the order they run ===

CHECKS = []


def check(claim):
    def register(function):
        CHECKS.append((claim, function))
        return function

    return register


@check("/livez, /readyz and /metrics are served by the admin listener")
def admin(server):
    assert server.get("/livez")[0] == 200
    assert server.get("/readyz")[0] == 200
    assert open_waits(server) == 0, "expected no open waits"


@check("a future returns the unpacked result, equal to the digest computed by Python")
def follow(server):
    future = server.future("tree")
    result = future.result(timeout=120)
    assert isinstance(result, checksum_pb2.Checksum)
    files, size, digest = checksum_of(server.directory / "tree")
    assert (result.files, result.bytes) == (files, size), f"{result} is not {files}, {size}"
    assert result.sha256 == digest, f"{result.sha256} is not {digest}"
    assert result.unreadable == 0
    metadata = future.metadata
    assert metadata.state == State.SUCCEEDED
    assert metadata.HasField("end_time"), "expected an end time"
    assert metadata.progress.done_units == metadata.progress.total_units == size
    return f"{files} files, {size} bytes, sha256 {digest[:12]}…"


@check("the metadata of a future has increasing progress")
def progress(server):
    with server.slow_future() as future:
        seen = []

        def grew():
            assert not future.done(), future.exception()
            now = future.metadata.progress
            if now.done_units > (seen[-1] if seen else 0):
                seen.append(now.done_units)
            return len(seen) >= 4

        wait_until(grew, "done_units increases four times")
        last = future.metadata.progress
        assert last.unit == "bytes", last
        assert last.stage, "expected a stage"
        assert seen[-1] <= last.total_units == SLOW_BYTES, last
        return f"{' < '.join(str(units) for units in seen)} of {last.total_units} bytes, {last.stage}"


@check("future.cancel() cancels: result() raises Cancelled, the state is CANCELLED")
def cancel(server):
    with server.slow_future() as future:
        start = time.monotonic()
        assert future.cancel() is True
        try:
            future.result(timeout=30)
            raise AssertionError("expected no result of a cancelled operation")
        except exceptions.Cancelled:
            elapsed = time.monotonic() - start
        assert future.cancelled()
        assert future.operation.error.code == code_pb2.CANCELLED
        assert future.metadata.state == State.CANCELLED
        assert future.metadata.cancel_requested
        assert future.cancel() is False, "expected no second cancellation"
        return f"done {elapsed:.2f} s after the call"


@check("cancel of a done operation is OK and changes nothing")
def cancel_done(server):
    future = server.future("nothing")
    future.result()
    server.operations.cancel_operation(future.operation.name)
    assert server.operations.get_operation(future.operation.name) == future.operation


@check("a failed operation raises NotFound, with its ErrorInfo")
def failed(server):
    future = server.future("no-such-directory")
    try:
        future.result(timeout=30)
        raise AssertionError("expected the operation to fail")
    except exceptions.NotFound as error:
        # The future keeps the google.rpc.Status of the operation here.
        (status,) = error.errors
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1, f"{len(infos)} ErrorInfo in {status}"
    assert (infos[0].reason, infos[0].domain) == ("DIRECTORY_NOT_FOUND", DOMAIN), infos[0]
    assert future.metadata.state == State.FAILED
    return f"{infos[0].reason}: {status.message}"


@check("a directory outside of the root is rejected by the call")
def outside(server):
    for directory in ("..", "/", "tree/../.."):
        try:
            server.create(directory)
            raise AssertionError(f"{directory} was accepted")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error


@check("get, cancel, delete, wait and watch of an unknown name raise NotFound, OPERATION_NOT_FOUND")
def unknown(server):
    name = "operations/unknown"
    for method in ("get_operation", "cancel_operation", "delete_operation"):
        with expect_error(exceptions.NotFound, "OPERATION_NOT_FOUND"):
            getattr(server.operations, method)(name)
    with expect_error(exceptions.NotFound, "OPERATION_NOT_FOUND"), translate_rpc_errors():
        server.raw.WaitOperation(operations_pb2.WaitOperationRequest(name=name))
    with expect_error(exceptions.NotFound, "OPERATION_NOT_FOUND"), translate_rpc_errors():
        list(server.watch.WatchOperation(watch_pb2.WatchOperationRequest(name=name)))


@check("a second delete raises NotFound")
def delete(server):
    name = server.create("nothing").name
    server.operations.delete_operation(name)
    for method in ("delete_operation", "get_operation"):
        with expect_error(exceptions.NotFound, "OPERATION_NOT_FOUND"):
            getattr(server.operations, method)(name)


@check("list_operations returns each operation once, newest first")
def list_pages(server):
    created = [server.create("nothing").name for _ in range(2 * DEFAULT_PAGE_SIZE + 50)]
    sizes, names = [], []
    for page in server.operations.list_operations("operations", "").pages:
        listed = [listed.name for listed in page]
        sizes.append(len(listed))
        names += listed
    assert len(sizes) >= 3, f"pages of {sizes}"
    assert max(sizes) <= DEFAULT_PAGE_SIZE, f"pages of {sizes}"
    assert len(names) == len(set(names)), "expected each operation once"
    assert names[: len(created)] == created[::-1], "expected the newest first"
    return f"{len(names)} operations on pages of {sizes}"


@check("page sizes and page tokens work, invalid ones are INVALID_ARGUMENT")
def page_size(server):
    whole = [listed.name for listed in server.operations.list_operations("operations", "")]
    names, token = [], ""
    for _ in range(3):
        page = server.raw.ListOperations(
            operations_pb2.ListOperationsRequest(name="operations", page_size=7, page_token=token)
        )
        assert len(page.operations) == 7 and page.next_page_token
        names += [listed.name for listed in page.operations]
        token = page.next_page_token
    assert names == whole[:21]
    for bad, reason in (({"page_size": -1}, "INVALID_PAGE_SIZE"), ({"page_token": "x"}, "INVALID_PAGE_TOKEN")):
        with expect_error(exceptions.InvalidArgument, reason), translate_rpc_errors():
            server.raw.ListOperations(operations_pb2.ListOperationsRequest(name="operations", **bad))


@check("a filter is applied, an invalid one is INVALID_ARGUMENT, INVALID_FILTER")
def list_filter(server):
    with server.slow_future() as future:
        name = future.operation.name
        running = [found.name for found in server.operations.list_operations("operations", "done = false")]
        done = [found.name for found in server.operations.list_operations("operations", "done = true")]
        assert name in running and name not in done
    with expect_error(exceptions.InvalidArgument, "INVALID_FILTER"):
        list(server.operations.list_operations("operations", "done = = true"))


@check("WaitOperation returns OK and an unfinished operation after its timeout")
def wait_timeout(server):
    with server.slow_future() as future:
        request = operations_pb2.WaitOperationRequest(name=future.operation.name)
        request.timeout.FromMilliseconds(500)
        start = time.monotonic()
        response = server.raw.WaitOperation(request)
        elapsed = time.monotonic() - start
        assert not response.done and response.name == future.operation.name
        assert 0.45 < elapsed < 3, f"answered after {elapsed:.2f} s"
        return f"timeout 0.5 s, answered after {elapsed:.2f} s"


@check("WaitOperation with a deadline of 300 ms returns OK in time")
def wait_deadline(server):
    with server.slow_future() as future:
        request = operations_pb2.WaitOperationRequest(name=future.operation.name)
        times = []
        for _ in range(10):
            start = time.monotonic()
            # On a busy machine the response may need more than the safety margin of 20 ms.
            with contextlib.suppress(grpc.RpcError):
                response = server.raw.WaitOperation(request, timeout=0.3)
                times.append(time.monotonic() - start)
                assert not response.done
        assert len(times) >= 5, f"{len(times)} of 10 in time"
        assert min(times) > 0.1, f"expected a wait, got a response after {min(times):.3f} s"
        return f"{len(times)} of 10, after {min(times):.3f} to {max(times):.3f} s"


@check("WaitOperation returns when the operation is done")
def wait_wakes(server):
    with server.slow_future() as future:
        request = operations_pb2.WaitOperationRequest(name=future.operation.name)
        waiting = server.raw.WaitOperation.future(request, timeout=60)
        time.sleep(0.3)
        assert not waiting.done(), "expected an open wait"
        server.operations.cancel_operation(future.operation.name)
        response = waiting.result(timeout=30)
        assert response.done and response.error.code == code_pb2.CANCELLED


@check("WatchOperation streams states until the operation is done, then ends")
def watch(server):
    name = server.create("tree").name
    seen = list(server.watch.WatchOperation(watch_pb2.WatchOperationRequest(name=name), timeout=120))
    assert [state.done for state in seen] == [False] * (len(seen) - 1) + [True]
    assert {state.name for state in seen} == {name}
    assert seen[-1] == server.operations.get_operation(name)
    return f"{len(seen)} states"


@check(f"SIGTERM during {OPEN_WAITS} open waits: each returns OK, the server exits with 0")
def sigterm(server):
    names = [server.create("slow").name for _ in range(4)]
    wait_until(lambda: any(running(server, name) for name in names), "one of them is running")
    responses, response_time = asyncio.run(terminate_under_waits(server, names))
    failures = [response for response in responses if isinstance(response, BaseException)]
    assert not failures, f"{len(failures)} of {len(responses)} failed, such as {failures[0]!r}"
    assert len(responses) == OPEN_WAITS
    assert all(response.name in names and not response.done for response in responses)
    start = time.monotonic()
    code = server.process.wait(timeout=GRACE_SECONDS + 10)
    exit_time = response_time + time.monotonic() - start
    assert code == 0, f"exit code {code}"
    assert exit_time < GRACE_SECONDS + 1, f"ended {exit_time:.1f} s after SIGTERM"
    return f"responses {response_time:.2f} s after it, exit after {exit_time:.2f} s"


def running(server, name):
    metadata = metadata_pb2.OperationMetadata()
    server.operations.get_operation(name).metadata.Unpack(metadata)
    return metadata.state == State.RUNNING


async def terminate_under_waits(server, names):
    # Ten connections, because the server limits the streams of one.
    channels = [
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(10)
    ]
    stubs = [operations_pb2_grpc.OperationsStub(channel) for channel in channels]
    waits = []
    for number in range(OPEN_WAITS):
        request = operations_pb2.WaitOperationRequest(name=names[number % len(names)])
        request.timeout.FromSeconds(120)
        stub = stubs[number % len(stubs)]
        waits.append(asyncio.ensure_future(stub.WaitOperation(request)))
    deadline = time.monotonic() + 30
    while (open_now := await asyncio.to_thread(open_waits, server)) < OPEN_WAITS:
        assert time.monotonic() < deadline, f"only {open_now} waits are open"
        await asyncio.sleep(0.1)
    assert not any(wait.done() for wait in waits), "expected all waits to be open"

    server.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    responses = await asyncio.gather(*waits, return_exceptions=True)
    response_time = time.monotonic() - start
    for channel in channels:
        await channel.close()
    return responses, response_time


def open_waits(server):
    samples = WAITERS_SAMPLE.findall(server.get("/metrics")[1])
    assert samples, "no longrunning_open_waits in /metrics"
    return sum(float(sample) for sample in samples)


# === The run ===


def main():
    failed = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-clients-") as scratch:
        create_files(pathlib.Path(scratch))
        server = Server(scratch)
        try:
            for claim, function in CHECKS:
                try:
                    detail = function(server)
                    print(f"  ok      {claim}" + (f": {detail}" if detail else ""), flush=True)
                except Exception:
                    failed += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
            if failed:
                print("the last log lines of the server:\n" + "".join(server.log[-20:]))
        finally:
            # The server has exited already unless the last check failed.
            server.process.kill()
            server.process.wait()
    print(f"\ngoogle-api-core checks: {len(CHECKS) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
