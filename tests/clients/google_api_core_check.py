"""Google's own Python client follows operations of `longrunning serve --demo`.

Starts the server of $LONGRUNNING_BIN on free loopback ports, talks to it with
`google.api_core.operations_v1.OperationsClient` and with futures of
`google.api_core.operation.from_gapic`, and with raw stubs where that client has
no method (WaitOperation, WatchOperation). One line for each check; exit code 1
if one failed. Run by tests/clients/run in a venv of requirements.txt.
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


def compile_our_protos():
    """Compiles longrunning/** only: the google packages come from PyPI, and a
    second copy of theirs would clash in the descriptor pool."""
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


compile_our_protos()

from longrunning.demo.v1 import checksum_pb2, checksum_pb2_grpc  # noqa: E402
from longrunning.v1 import metadata_pb2, watch_pb2, watch_pb2_grpc  # noqa: E402

DOMAIN = "longrunning.dev"
State = metadata_pb2.OperationMetadata
# Hashing this takes far longer than any check, and it takes no room on the disk.
SLOW_BYTES = 40 << 30
# The default of the server, by which alone OperationsClient lists: it cannot ask
# for a page size.
DEFAULT_PAGE_SIZE = 100
OPEN_WAITS = 1000
GRACE_SECONDS = 20
# The gauge that tells when all of those waits have reached the server.
WAITERS_SAMPLE = re.compile(r"^longrunning_open_waits(?:\{[^}]*\})? (\S+)", re.MULTILINE)

# What the futures poll by. Google's default starts at one second, which would
# only make the checks slower.
POLLING = polling.DEFAULT_POLLING.with_delay(initial=0.05, maximum=0.5)


# === The server ===


class Server:
    """`longrunning serve --demo DIRECTORY`, and the clients of it."""

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
        self._serves = threading.Event()
        threading.Thread(target=self._read_log, daemon=True).start()
        if not self._serves.wait(15):
            self.process.kill()
            raise RuntimeError("the server did not say that it serves:\n" + "".join(self.log))
        self.address = self._addresses["clients"]
        self.workers = self._addresses["workers"]
        self.admin = self._addresses["admin"]
        channel = grpc.insecure_channel(self.address)
        self.operations = operations_v1.OperationsClient(channel)
        self.raw = operations_pb2_grpc.OperationsStub(channel)
        self.checksums = checksum_pb2_grpc.ChecksumsStub(channel)
        self.watch = watch_pb2_grpc.OperationWatchStub(channel)

    def _read_log(self):
        """Reads to the end, because a full pipe would stop the server."""
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
                    self._serves.set()

    def create(self, directory):
        """The RPC that begins an operation, as an API with a slow method has it."""
        return self.checksums.CreateChecksum(checksum_pb2.CreateChecksumRequest(directory=directory))

    def future(self, directory):
        """What a generated Google client would return from that RPC."""
        return operation.from_gapic(
            self.create(directory),
            self.operations,
            checksum_pb2.Checksum,
            metadata_type=metadata_pb2.OperationMetadata,
            polling=POLLING,
        )

    @contextlib.contextmanager
    def slow_future(self):
        """A future of an operation that runs, cancelled at the end."""
        future = self.future("slow")
        try:
            until(lambda: not future.done() and future.metadata.state == State.RUNNING, "it runs")
            yield future
        finally:
            future.cancel()

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()


def until(holds, what, seconds=30):
    """Asks until it holds: for states that come by themselves."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


# === What is hashed, and what must come out ===


def lay_out(directory):
    """The directory that the server offers."""
    tree = directory / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a-b").mkdir()
    # By the bytes of the whole path, a-b/x < a.txt < a/x; by its parts, a/x is first.
    (tree / "a" / "x").write_bytes(b"one")
    (tree / "a-b" / "x").write_bytes(b"two")
    (tree / "a.txt").write_bytes(b"three")
    (tree / "empty").write_bytes(b"")
    (tree / "größe").write_bytes(b"four")
    # Some file systems refuse a name that is no UTF-8.
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
    """Files, bytes and digest as longrunning/demo/v1/checksum.proto says."""
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
def raises(kind, reason):
    """The call fails with this exception of Google's and exactly one ErrorInfo."""
    try:
        yield
    except kind as error:
        infos = [d for d in error.details if isinstance(d, error_details_pb2.ErrorInfo)]
        assert len(infos) == 1, f"{len(infos)} ErrorInfo in {error!r}"
        assert error.domain == DOMAIN, f"domain {error.domain}"
        assert error.reason == reason, f"reason {error.reason}, not {reason}"
        return
    raise AssertionError(f"no {kind.__name__} was raised")


@contextlib.contextmanager
def as_google_raises():
    """Raw stubs raise grpc.RpcError; this makes of it what the client makes."""
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


@check("/livez, /readyz and /metrics answer on the admin listener")
def admin(server):
    assert server.get("/livez")[0] == 200
    assert server.get("/readyz")[0] == 200
    assert open_waits(server) == 0, "nobody waits yet"


@check("a future follows an operation to its result, unpacked and equal to what Python hashes")
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
    assert metadata.HasField("end_time"), "metadata of a done operation has its end"
    assert metadata.progress.done_units == metadata.progress.total_units == size
    return f"{files} files, {size} bytes, sha256 {digest[:12]}…"


@check("its metadata shows progress that grows")
def progress(server):
    with server.slow_future() as future:
        seen = []

        def grew():
            assert not future.done(), future.exception()
            now = future.metadata.progress
            if now.done_units > (seen[-1] if seen else 0):
                seen.append(now.done_units)
            return len(seen) >= 4

        until(grew, "done_units grows four times")
        last = future.metadata.progress
        assert last.unit == "bytes", last
        assert last.stage, "the progress names its stage"
        assert seen[-1] <= last.total_units == SLOW_BYTES, last
        return f"{' < '.join(str(units) for units in seen)} of {last.total_units} bytes, {last.stage}"


@check("future.cancel() cancels: result() raises Cancelled, the metadata says CANCELLED")
def cancel(server):
    with server.slow_future() as future:
        asked = time.monotonic()
        assert future.cancel() is True
        try:
            future.result(timeout=30)
            raise AssertionError("a cancelled operation has no result")
        except exceptions.Cancelled:
            took = time.monotonic() - asked
        assert future.cancelled()
        assert future.operation.error.code == code_pb2.CANCELLED
        assert future.metadata.state == State.CANCELLED
        assert future.metadata.cancel_requested
        assert future.cancel() is False, "nothing is left to cancel"
        return f"done {took:.2f} s after the call"


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
        raise AssertionError("there is no such directory")
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


@check("a directory outside of the offered one is refused by the call itself")
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
        with raises(exceptions.NotFound, "OPERATION_NOT_FOUND"):
            getattr(server.operations, method)(name)
    with raises(exceptions.NotFound, "OPERATION_NOT_FOUND"), as_google_raises():
        server.raw.WaitOperation(operations_pb2.WaitOperationRequest(name=name))
    with raises(exceptions.NotFound, "OPERATION_NOT_FOUND"), as_google_raises():
        list(server.watch.WatchOperation(watch_pb2.WatchOperationRequest(name=name)))


@check("delete deletes, the second time raises NotFound")
def delete(server):
    name = server.create("nothing").name
    server.operations.delete_operation(name)
    for method in ("delete_operation", "get_operation"):
        with raises(exceptions.NotFound, "OPERATION_NOT_FOUND"):
            getattr(server.operations, method)(name)


@check("list_operations pages through everything, newest first, each once")
def list_pages(server):
    created = [server.create("nothing").name for _ in range(2 * DEFAULT_PAGE_SIZE + 50)]
    sizes, names = [], []
    for page in server.operations.list_operations("operations", "").pages:
        listed = [listed.name for listed in page]
        sizes.append(len(listed))
        names += listed
    assert len(sizes) >= 3, f"pages of {sizes}"
    assert max(sizes) <= DEFAULT_PAGE_SIZE, f"pages of {sizes}"
    assert len(names) == len(set(names)), "an operation came twice"
    assert names[: len(created)] == created[::-1], "not newest first"
    return f"{len(names)} operations on pages of {sizes}"


@check("a page size is kept, a page token leads on, bad ones are INVALID_ARGUMENT")
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
        with raises(exceptions.InvalidArgument, reason), as_google_raises():
            server.raw.ListOperations(operations_pb2.ListOperationsRequest(name="operations", **bad))


@check("a filter is applied, and a bad one is refused as INVALID_ARGUMENT, INVALID_FILTER")
def list_filter(server):
    with server.slow_future() as future:
        name = future.operation.name
        running = [found.name for found in server.operations.list_operations("operations", "done = false")]
        done = [found.name for found in server.operations.list_operations("operations", "done = true")]
        assert name in running and name not in done
    with raises(exceptions.InvalidArgument, "INVALID_FILTER"):
        list(server.operations.list_operations("operations", "done = = true"))


@check("WaitOperation with a timeout returns OK, not done, when that is over")
def wait_timeout(server):
    with server.slow_future() as future:
        request = operations_pb2.WaitOperationRequest(name=future.operation.name)
        request.timeout.FromMilliseconds(500)
        began = time.monotonic()
        answer = server.raw.WaitOperation(request)
        took = time.monotonic() - began
        assert not answer.done and answer.name == future.operation.name
        assert 0.45 < took < 3, f"answered after {took:.2f} s"
        return f"timeout 0.5 s, answered after {took:.2f} s"


@check("WaitOperation under a deadline of 300 ms returns OK before it")
def wait_deadline(server):
    with server.slow_future() as future:
        request = operations_pb2.WaitOperationRequest(name=future.operation.name)
        times = []
        for _ in range(10):
            began = time.monotonic()
            # On a busy machine the way back may take longer than the 20 ms that are left for it.
            with contextlib.suppress(grpc.RpcError):
                answer = server.raw.WaitOperation(request, timeout=0.3)
                times.append(time.monotonic() - began)
                assert not answer.done
        assert len(times) >= 5, f"{len(times)} of 10 came in time"
        assert min(times) > 0.1, f"an answer after {min(times):.3f} s is no wait"
        return f"{len(times)} of 10, after {min(times):.3f} to {max(times):.3f} s"


@check("WaitOperation wakes when the operation is done")
def wait_wakes(server):
    with server.slow_future() as future:
        request = operations_pb2.WaitOperationRequest(name=future.operation.name)
        waiting = server.raw.WaitOperation.future(request, timeout=60)
        time.sleep(0.3)
        assert not waiting.done(), "it waits"
        server.operations.cancel_operation(future.operation.name)
        answer = waiting.result(timeout=30)
        assert answer.done and answer.error.code == code_pb2.CANCELLED


@check("WatchOperation streams the states up to the done one, then ends")
def watch(server):
    name = server.create("tree").name
    seen = list(server.watch.WatchOperation(watch_pb2.WatchOperationRequest(name=name), timeout=120))
    assert [state.done for state in seen] == [False] * (len(seen) - 1) + [True]
    assert {state.name for state in seen} == {name}
    assert seen[-1] == server.operations.get_operation(name)
    return f"{len(seen)} states"


@check(f"SIGTERM during {OPEN_WAITS} open waits: each answers OK, the server ends with 0")
def sigterm(server):
    names = [server.create("slow").name for _ in range(4)]
    until(lambda: any(running(server, name) for name in names), "one of them runs")
    answers, answered_after = asyncio.run(terminate_under_waits(server, names))
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    assert not failures, f"{len(failures)} of {len(answers)} failed, such as {failures[0]!r}"
    assert len(answers) == OPEN_WAITS
    assert all(answer.name in names and not answer.done for answer in answers)
    began = time.monotonic()
    code = server.process.wait(timeout=GRACE_SECONDS + 10)
    ended_after = answered_after + time.monotonic() - began
    assert code == 0, f"exit code {code}"
    assert ended_after < GRACE_SECONDS + 1, f"ended {ended_after:.1f} s after SIGTERM"
    return f"all answered {answered_after:.2f} s after it, the server ended after {ended_after:.2f} s"


def running(server, name):
    metadata = metadata_pb2.OperationMetadata()
    server.operations.get_operation(name).metadata.Unpack(metadata)
    return metadata.state == State.RUNNING


async def terminate_under_waits(server, names):
    # Ten connections: one would queue what is above the server's limit of streams.
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
    assert not any(wait.done() for wait in waits), "a wait came back before the signal"

    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    answers = await asyncio.gather(*waits, return_exceptions=True)
    answered_after = time.monotonic() - began
    for channel in channels:
        await channel.close()
    return answers, answered_after


def open_waits(server):
    samples = WAITERS_SAMPLE.findall(server.get("/metrics")[1])
    assert samples, "no longrunning_open_waits in /metrics"
    return sum(float(sample) for sample in samples)


# === The run ===


def main():
    failed = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-clients-") as scratch:
        lay_out(pathlib.Path(scratch))
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
                print("the last lines of the server:\n" + "".join(server.log[-20:]))
        finally:
            # Gone already, unless the last check failed.
            server.process.kill()
            server.process.wait()
    print(f"\ngoogle-api-core checks: {len(CHECKS) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
