"""Checks workers and services in other languages against `longrunning serve`.

    workers_check.py contract              the rules of OperationWorker, by a raw stub
    workers_check.py NAME WORKER SERVICE   the examples of a language, by their commands

The examples run as processes and are stopped by signals. Prints one line for each check
and exits with 1 if one failed. tests/clients/run runs it in a venv of requirements.txt.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import grpc
from google.api_core import exceptions, operation
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2, struct_pb2, wrappers_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from google_api_core_check import DOMAIN, POLLING, Server, wait_until  # compiles the protos
from longrunning.v1 import metadata_pb2, worker_pb2, worker_pb2_grpc

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES / "python" / "gen"))

Code = grpc.StatusCode
Kind = worker_pb2.Directive
State = metadata_pb2.OperationMetadata
ROWS = 1_000_000
# Far more than an export can write before it is cancelled.
ENDLESS_ROWS = 2_000_000_000


# === Calls ===


def pack(message):
    any_ = any_pb2.Any()
    any_.Pack(message)
    return any_


def struct(**values):
    result = struct_pb2.Struct()
    result.update(values)
    return pack(result)


def seconds(value):
    return {"seconds": int(value // 1), "nanos": round(value % 1 * 1e9)}


class Harness:
    """A server, with a raw stub for workers and the clients of `Server`."""

    def __init__(self, scratch, **listeners):
        self.scratch = pathlib.Path(scratch)
        self.server = Server(scratch, **listeners)
        self.channel = grpc.insecure_channel(self.server.workers)
        self.worker = worker_pb2_grpc.OperationWorkerStub(self.channel)

    def create_queued(self, queue, rows=20, more=(), **options):
        request = worker_pb2.CreateOperationRequest(**options)
        request.queued.queue = queue
        request.queued.input.CopyFrom(struct(rows=rows, **dict(more)))
        return self.worker.CreateOperation(request).operation.name

    def create_self_executed(self, **options):
        """Creates a self-executed operation and returns its lease."""
        request = worker_pb2.CreateOperationRequest(self_executed={"worker_id": "check"}, **options)
        return self.worker.CreateOperation(request).lease

    def lease(self, queue, wait=20.0, worker="check"):
        request = worker_pb2.LeaseOperationsRequest(queues=[queue], worker_id=worker, wait_timeout=seconds(wait))
        return self.worker.LeaseOperations(request).leases[0]

    def heartbeat(self, *reports):
        return self.worker.Heartbeat(worker_pb2.HeartbeatRequest(worker_id="check", reports=reports))

    def finish(self, lease, **outcome):
        end = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token, **outcome)
        return self.worker.FinishOperation(end)

    def get(self, name):
        return self.server.raw.GetOperation(operations_pb2.GetOperationRequest(name=name))

    def cancel(self, name):
        self.server.raw.CancelOperation(operations_pb2.CancelOperationRequest(name=name))

    def wait_until_done(self, name, timeout=30):
        request = operations_pb2.WaitOperationRequest(name=name, timeout=seconds(timeout))
        response = self.server.raw.WaitOperation(request)
        assert response.done, f"not done after {timeout} s: {response}"
        return response

    def metadata(self, name):
        metadata = metadata_pb2.OperationMetadata()
        assert self.get(name).metadata.Unpack(metadata)
        return metadata

    def result(self, name):
        """Waits for the result of the copying worker of the examples."""
        response, result = self.wait_until_done(name), struct_pb2.Struct()
        assert response.response.Unpack(result), response
        return {key: int(value) for key, value in result.items()}


def reason_of(status):
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1, f"{len(infos)} ErrorInfo in {status}"
    assert infos[0].domain == DOMAIN, infos[0]
    return infos[0].reason


def expect_error(code, reason, call, *arguments, text="", **named):
    """Expects an error with this code, one ErrorInfo and a message that contains `text`."""
    try:
        response = call(*arguments, **named)
    except grpc.RpcError as error:
        assert error.code() == code, f"expected {code.name}, got {error.code().name}: {error.details()}"
        status = rpc_status.from_call(error)
        assert status is not None, f"no details: {error.details()}"
        found = reason_of(status)
        assert found == reason, f"expected reason {reason}, got {found}: {error.details()}"
        assert text in error.details(), f"expected {text!r} in {error.details()!r}"
        return error.details()
    raise AssertionError(f"expected {reason}, got {response}")


# === Processes ===


class Process:
    """A process and the lines that it has printed."""

    def __init__(self, command, **environment):
        self.lines = []
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(EXAMPLES / "python" / "gen"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()

    def matching_lines(self, pattern):
        return [line for line in list(self.lines) if re.search(pattern, line)]

    def wait_for_line(self, pattern, timeout=30):
        try:
            wait_until(lambda: self.matching_lines(pattern), f"a line matches {pattern}", timeout)
        except AssertionError:
            raise AssertionError(f"expected {pattern!r} in:\n{''.join(self.lines)}") from None
        return self.matching_lines(pattern)[0]

    def signal(self, signum):
        self.process.send_signal(signum)

    def wait_for_exit(self, timeout=30):
        code = self.process.wait(timeout)
        self.reader.join(5)
        assert code == 0, f"exit code {code}:\n{''.join(self.lines)}"

    def kill(self):
        self.process.kill()
        self.process.wait()


class Example:
    """The two programs of one language."""

    def __init__(self, worker, service):
        self.worker_command, self.service_command = shlex.split(worker), shlex.split(service)

    @contextlib.contextmanager
    def worker(self, harness, queue, **environment):
        address = environment.pop("address", harness and harness.server.workers)
        worker = Process(self.worker_command, LONGRUNNING_WORKERS=address, QUEUE=queue, **environment)
        try:
            yield worker
        finally:
            worker.kill()

    @contextlib.contextmanager
    def service(self, harness, directory):
        """Yields the running service and a stub for it."""
        import bookstore_pb2_grpc

        directory.mkdir(exist_ok=True)
        service = Process(
            [*self.service_command, str(directory)],
            LONGRUNNING_WORKERS=harness.server.workers,
            BOOKSTORE_LISTEN="127.0.0.1:0",
        )
        try:
            address = service.wait_for_line("listening bookstore=").split("bookstore=")[1].strip()
            yield service, bookstore_pb2_grpc.BookstoreStub(grpc.insecure_channel(address))
        finally:
            service.kill()


# === Checks of the examples ===

EXAMPLE_CHECKS = []
CONTRACT_CHECKS = []


def check(checks, claim):
    def register(function):
        checks.append((claim, function))
        return function

    return register


@check(EXAMPLE_CHECKS, "two workers drain 40 operations, each exactly once")
def drain_queue(harness, example):
    with example.worker(harness, "copy") as one, example.worker(harness, "copy") as other:
        names = [harness.create_queued("copy", rows=5) for _ in range(40)]
        results = [harness.result(name) for name in names]
        assert all(result == {"rows": 5, "first": 0, "attempt": 1} for result in results), results
        started = {name: len(one.matching_lines(f"{name} begins")) + len(other.matching_lines(f"{name} begins")) for name in names}
        assert set(started.values()) == {1}, started
        shares = [len(worker.matching_lines("begins")) for worker in (one, other)]
        assert all(shares), f"expected both to work: {shares}"
        return f"{shares[0]} + {shares[1]}"


@check(EXAMPLE_CHECKS, "the attempt after a retryable failure gets the checkpoint")
def retry(harness, example):
    with example.worker(harness, "retry"):
        policy = {"max_attempts": 2, "initial_backoff": seconds(0.1)}
        name = harness.create_queued("retry", more={"breaks_at": 10}, retry_policy=policy)
        assert harness.result(name) == {"rows": 20, "first": 10, "attempt": 2}
        assert harness.metadata(name).attempt == 2
        name = harness.create_queued("retry", more={"breaks_at": 10})
        error = harness.wait_until_done(name).error
        assert (error.code, error.message.split(":")[0]) == (code_pb2.UNAVAILABLE, "source disconnected"), error
        return "attempt 2 continued at row 10; without a retry policy the first failure is final"


@check(EXAMPLE_CHECKS, "progress is visible while an attempt runs")
def progress(harness, example):
    with example.worker(harness, "progress"):
        name = harness.create_queued("progress", rows=500)
        wait_until(lambda: harness.metadata(name).progress.done_units > 20, "progress increases")
        seen = harness.metadata(name).progress
        assert (seen.total_units, seen.unit) == (500, "rows"), seen
        harness.cancel(name)


@check(EXAMPLE_CHECKS, "cancel stops the attempt immediately, without a retry")
def cancel(harness, example):
    with example.worker(harness, "cancel") as worker:
        name = harness.create_queued("cancel", rows=10_000, retry_policy={"max_attempts": 3})
        worker.wait_for_line(f"{name} begins")
        time.sleep(0.3)
        start = time.monotonic()
        harness.cancel(name)
        error = harness.wait_until_done(name).error
        elapsed = time.monotonic() - start
        assert error.code == code_pb2.CANCELLED, error
        assert harness.metadata(name).attempt == 1
        return f"done {elapsed * 1000:.0f} ms after the call of CancelOperation"


@check(EXAMPLE_CHECKS, "SIGTERM ends the open poll, finishes short attempts and releases long ones")
def sigterm(harness, example):
    with example.worker(harness, "idle") as idle:
        name = harness.create_queued("idle", rows=1)
        harness.wait_until_done(name)
        time.sleep(0.5)  # let the next poll of 30 s open
        idle.signal(signal.SIGTERM)
        idle.wait_for_exit(timeout=15)
    with example.worker(harness, "drain", DRAIN="3s") as worker:
        long, short = harness.create_queued("drain", rows=10_000), harness.create_queued("drain", rows=75)
        worker.wait_for_line(f"{long} begins"), worker.wait_for_line(f"{short} begins")
        wait_until(lambda: harness.metadata(long).progress.done_units > 10, "a checkpoint exists")
        worker.signal(signal.SIGTERM)
        time.sleep(0.5)
        late = harness.create_queued("drain", rows=1)
        worker.wait_for_exit()
        assert harness.result(short)["attempt"] == 1
        assert harness.metadata(long).state == State.PENDING, harness.metadata(long)
        assert harness.metadata(late).attempt == 0, "expected no lease while draining"
    lease = harness.lease("drain")
    checkpoint = struct_pb2.Struct()
    assert lease.name == long and lease.checkpoint.Unpack(checkpoint) and checkpoint["next"] > 10, lease
    harness.finish(lease)
    return f"attempt {lease.attempt} continues at row {checkpoint['next']:.0f}"


@check(EXAMPLE_CHECKS, "a worker stopped until its lease expired records no outcome and continues with others")
def stopped(harness, example):
    with example.worker(harness, "stopped") as worker:
        # More than two attempts: the open poll of the stopped worker may get a lease, too.
        options = {"lease_duration": seconds(1), "retry_policy": {"max_attempts": 5, "initial_backoff": seconds(0.1)}}
        name = harness.create_queued("stopped", rows=100, **options)
        wait_until(lambda: harness.metadata(name).progress.done_units > 10, "a checkpoint exists")
        worker.signal(signal.SIGSTOP)
        lease = harness.lease("stopped")
        assert lease.name == name and lease.attempt >= 2, lease
        assert lease.HasField("checkpoint"), "expected the checkpoint of the expired lease"
        harness.finish(lease, response=pack(wrappers_pb2.StringValue(value="the other attempt")))
        before = harness.get(name)
        worker.signal(signal.SIGCONT)
        after = harness.create_queued("stopped", rows=1)
        assert harness.result(after)["attempt"] == 1
        time.sleep(2.5)  # longer than the remaining rows take
        assert harness.get(name) == before, "expected no change of the outcome"
        assert not worker.matching_lines(f"{name} ended"), "expected no recorded outcome"


@check(EXAMPLE_CHECKS, "a worker started before its server works, also after a restart of the server")
def restart(_world, example):
    addresses = {"listen": free_address(), "worker_listen": free_address()}
    with example.worker(None, "restart", address=addresses["worker_listen"]) as worker:
        time.sleep(1)
        for _ in range(2):
            with tempfile.TemporaryDirectory() as scratch:
                harness = Harness(scratch, **addresses)
                try:
                    assert harness.result(harness.create_queued("restart", rows=1))["rows"] == 1
                    # The store is in memory, so a restart loses this operation.
                    name = harness.create_queued("restart", rows=10_000)
                    worker.wait_for_line(f"{name} begins")
                finally:
                    harness.channel.close()
                    harness.server.process.kill()
                    harness.server.process.wait()
        assert worker.process.poll() is None, "".join(worker.lines)


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@check(EXAMPLE_CHECKS, f"Google's future follows an export of {ROWS} books")
def export(harness, example):
    import bookstore_pb2

    directory = harness.scratch / f"export-{time.monotonic_ns()}"
    with example.service(harness, directory) as (_, bookstore):
        request = bookstore_pb2.ExportBooksRequest(rows=ROWS, request_id=os.urandom(16).hex())
        start = time.monotonic()
        started = bookstore.ExportBooks(request)
        response_time = time.monotonic() - start
        future = operation.from_gapic(
            started,
            harness.server.operations,
            bookstore_pb2.ExportBooksResponse,
            metadata_type=bookstore_pb2.ExportBooksMetadata,
            polling=POLLING,
        )
        percents = [future.metadata.progress_percent]
        while not future.done():
            percents.append(future.metadata.progress_percent)
            time.sleep(0.05)
        result = future.result(timeout=120)
        elapsed = time.monotonic() - start
        percents.append(future.metadata.progress_percent)
        assert percents == sorted(percents), percents
        assert percents[0] == 0 and percents[-1] == 100, percents
        assert [p for p in percents if 0 < p < 100], f"expected intermediate progress: {percents}"
        with open(result.path) as file:
            assert sum(1 for _ in file) == ROWS + 1 == result.rows + 1
        again = bookstore.ExportBooks(request)
        assert again.name == started.name and again.done, "expected the same operation for the same request"
        assert [file.name for file in directory.iterdir()] == [pathlib.Path(result.path).name]
        refusal = expect_error(
            Code.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            bookstore.ExportBooks,
            bookstore_pb2.ExportBooksRequest(rows=1, request_id=request.request_id),
        )
        assert refusal
        listed = harness.get(started.name).metadata
        assert listed.type_url == "type.googleapis.com/bookstore.v1.ExportBooksMetadata"
        shown = " ".join(f"{p}%" for p in dict.fromkeys(percents))
        return f"response after {response_time * 1000:.0f} ms, result after {elapsed:.1f} s: {shown}"


@check(EXAMPLE_CHECKS, "a cancelled export stops and removes its partial file")
def cancel_export(harness, example):
    import bookstore_pb2

    directory = harness.scratch / f"cancel-{time.monotonic_ns()}"
    with example.service(harness, directory) as (_, bookstore):
        times = []
        for _ in range(5):
            future = operation.from_gapic(
                bookstore.ExportBooks(bookstore_pb2.ExportBooksRequest(rows=ENDLESS_ROWS)),
                harness.server.operations,
                bookstore_pb2.ExportBooksResponse,
                metadata_type=bookstore_pb2.ExportBooksMetadata,
                polling=POLLING,
            )
            wait_until(lambda: future.metadata.rows > 0 or future.done(), "the export writes")
            assert len(list(directory.glob("*.part"))) == 1
            start = time.monotonic()
            harness.cancel(future.operation.name)
            # The service calls Finish after its thread has stopped and the file is removed.
            harness.wait_until_done(future.operation.name)
            times.append((time.monotonic() - start) * 1000)
            assert not list(directory.iterdir()), "expected no partial file"
            with contextlib.suppress(exceptions.Cancelled):
                raise AssertionError(f"a result: {future.result(timeout=30)}")
        shown = ", ".join(f"{time_:.0f}" for time_ in times)
        return f"from the call of CancelOperation to stopped, removed and recorded: {shown} ms"


@check(EXAMPLE_CHECKS, "SIGTERM to the service fails its exports with WORKER_LOST and leaves no partial file")
def stop_service(harness, example):
    import bookstore_pb2

    directory = harness.scratch / f"stop-{time.monotonic_ns()}"
    with example.service(harness, directory) as (service, bookstore):
        name = bookstore.ExportBooks(bookstore_pb2.ExportBooksRequest(rows=ENDLESS_ROWS)).name
        wait_until(lambda: list(directory.glob("*.part")), "the export writes")
        service.signal(signal.SIGTERM)
        service.wait_for_exit()
        error = harness.wait_until_done(name).error
        assert (error.code, reason_of(error)) == (code_pb2.UNAVAILABLE, "WORKER_LOST"), error
        assert not list(directory.iterdir())


# === Checks of the contract ===


@check(CONTRACT_CHECKS, "finish of a zombie worker is LEASE_LOST, the outcome of the next attempt stays")
def zombie(harness, _):
    options = {"lease_duration": seconds(1), "retry_policy": {"max_attempts": 2}}
    name = harness.create_queued("zombie", **options)
    process = Process([sys.executable, __file__, "zombie", harness.server.workers])
    try:
        process.wait_for_line("leased")
        process.signal(signal.SIGSTOP)
        lease = harness.lease("zombie")
        assert lease.name == name and lease.attempt == 2, lease
        process.signal(signal.SIGCONT)
        line = process.wait_for_line("finish:")
        assert re.search(r"FAILED_PRECONDITION LEASE_LOST .*another attempt holds", line), line
        process.wait_for_exit()
    finally:
        process.kill()
    mine = pack(wrappers_pb2.StringValue(value="the other attempt"))
    assert harness.finish(lease, response=mine).response == mine
    assert harness.get(name).response == mine
    return line.split("LEASE_LOST ")[1].strip()


def run_zombie_worker(address):
    """Leases an operation and finishes it. A signal stops the process until the lease has
    expired."""
    stub = worker_pb2_grpc.OperationWorkerStub(grpc.insecure_channel(address))
    request = worker_pb2.LeaseOperationsRequest(queues=["zombie"], worker_id="zombie")
    lease = stub.LeaseOperations(request).leases[0]
    print("leased", flush=True)
    time.sleep(0.9)
    end = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token)
    try:
        stub.FinishOperation(end)
        print("finish: OK", flush=True)
    except grpc.RpcError as error:
        reason = reason_of(rpc_status.from_call(error))
        print(f"finish: {error.code().name} {reason} {error.details()}", flush=True)


@check(CONTRACT_CHECKS, "an expired lease without a next attempt is LEASE_LOST, and the operation WORKER_LOST")
def expired_lease(harness, _):
    lease = harness.create_self_executed(lease_duration=seconds(1))
    error = harness.wait_until_done(lease.name, timeout=10).error
    assert (error.code, reason_of(error)) == (code_pb2.UNAVAILABLE, "WORKER_LOST"), error
    expect_error(Code.FAILED_PRECONDITION, "OPERATION_ALREADY_DONE", harness.finish, lease)
    (directive,) = harness.heartbeat(report(lease)).directives
    assert directive.kind == Kind.LEASE_LOST and directive.error.message, directive
    return error.message


def report(lease, **more):
    return worker_pb2.LeaseHeartbeat(name=lease.name, lease_token=lease.lease_token, **more)


def create_call(harness, **fields):
    """Returns a call of CreateOperation, for a queue unless `fields` has an execution."""
    if not {"self_executed", "queued"} & fields.keys():
        fields["queued"] = {"queue": "bad"}
    return lambda: harness.worker.CreateOperation(worker_pb2.CreateOperationRequest(**fields))


NO_TYPE = any_pb2.Any(value=b"something")
NO_MESSAGE = any_pb2.Any(type_url="type.googleapis.com/not a message")
INVALID = Code.INVALID_ARGUMENT


@check(CONTRACT_CHECKS, "CreateOperation rejects invalid requests and names the field")
def invalid_creations(harness, _):
    label = {"k" * 5: "v"}
    cases = [
        ("no execution", "INVALID_EXECUTION", "execution", lambda: harness.worker.CreateOperation(
            worker_pb2.CreateOperationRequest())),
        ("no queue", "INVALID_QUEUE", "queue", create_call(harness, queued={})),
        ("bad queue", "INVALID_QUEUE", "queue", create_call(harness, queued={"queue": "a b"})),
        ("long queue", "INVALID_QUEUE", "queue", create_call(harness, queued={"queue": "q" * 64})),
        ("no worker", "INVALID_WORKER_ID", "worker_id", create_call(harness, self_executed={})),
        ("long worker", "INVALID_WORKER_ID", "worker_id", create_call(harness, self_executed={"worker_id": "w" * 256})),
        ("parent", "INVALID_NAME", "parent", create_call(harness, parent="projects")),
        ("id", "INVALID_NAME", "operation_id", create_call(harness, operation_id="Not-Lower")),
        ("request id", "INVALID_REQUEST_ID", "request_id", create_call(harness, request_id="r" * 256)),
        ("method", "INVALID_METHOD", "method", create_call(harness, method="m" * 256)),
        ("input without a type", "INVALID_ANY", "input", create_call(harness, queued={"queue": "q", "input": NO_TYPE})),
        ("input of no message", "INVALID_ANY", "input", create_call(harness, queued={"queue": "q", "input": NO_MESSAGE})),
        ("metadata", "INVALID_ANY", "metadata", create_call(harness, metadata=NO_TYPE)),
        ("65 labels", "INVALID_LABELS", "64", create_call(harness, labels={f"k{n}": "" for n in range(65)})),
        ("label key", "INVALID_LABELS", "Key", create_call(harness, labels={"Key": "v"})),
        ("64 KiB label", "INVALID_LABELS", "255", create_call(harness, labels=dict.fromkeys(label, "v" * 65536))),
        ("lease below 1 s", "INVALID_EXECUTION_OPTIONS", "lease_duration", create_call(harness, lease_duration=seconds(0.999))),
        ("attempts", "INVALID_EXECUTION_OPTIONS", "max_attempts", create_call(harness, retry_policy={"max_attempts": -1})),
        ("multiplier", "INVALID_EXECUTION_OPTIONS", "multiplier", create_call(harness, retry_policy={"multiplier": 0.5})),
        ("large multiplier", "INVALID_EXECUTION_OPTIONS", "multiplier", create_call(harness, retry_policy={"multiplier": 1001})),
        ("NaN multiplier", "INVALID_EXECUTION_OPTIONS", "multiplier", create_call(harness, retry_policy={"multiplier": float("nan")})),
        ("jitter", "INVALID_EXECUTION_OPTIONS", "jitter", create_call(harness, retry_policy={"jitter": 1.5})),
        ("max below initial", "INVALID_EXECUTION_OPTIONS", "max_backoff", create_call(
            harness, retry_policy={"initial_backoff": seconds(9), "max_backoff": seconds(1)})),
        ("too long backoff", "INVALID_EXECUTION_OPTIONS", "max_backoff", create_call(
            harness, retry_policy={"max_backoff": seconds(400 * 86400)})),
        ("negative backoff", "INVALID_DURATION", "retry_policy", create_call(
            harness, retry_policy={"initial_backoff": seconds(-1)})),
        ("self-executed retries", "INVALID_EXECUTION_OPTIONS", "retry_policy", create_call(
            harness, self_executed={"worker_id": "w"}, retry_policy={"max_attempts": 2})),
        ("zero total_timeout", "INVALID_EXECUTION_OPTIONS", "total_timeout", create_call(harness, total_timeout=seconds(0))),
        ("year 0", "INVALID_TIME", "not_before", create_call(
            harness, queued={"queue": "q", "not_before": {"seconds": -10**12}})),
        ("nanos", "INVALID_TIME", "not_before", create_call(
            harness, queued={"queue": "q", "not_before": {"nanos": -1}})),
        ("trace", "INVALID_TRACE_CONTEXT", "trace_context", create_call(harness, trace_context={"Trace Parent": "x"})),
        ("9 traces", "INVALID_TRACE_CONTEXT", "trace_context", create_call(
            harness, trace_context={f"t{n}": "x" for n in range(9)})),
    ]
    for field in ("total_timeout", "attempt_timeout", "lease_duration", "retention", "cancel_grace_period"):
        cases.append((f"negative {field}", "INVALID_DURATION", field, create_call(harness, **{field: seconds(-1)})))
        mixed = {"seconds": 1, "nanos": -1}
        cases.append((f"mixed {field}", "INVALID_DURATION", field, create_call(harness, **{field: mixed})))
    return expect_errors(INVALID, cases)


def expect_errors(code, cases):
    """Runs all cases and reports every failed one."""
    failures = []
    for title, reason, text, call in cases:
        try:
            message = expect_error(code, reason, call, text=text)
            print(f"          {reason} {message}")
        except AssertionError as error:
            failures.append(f"{title}: {error}")
    assert not failures, "\n" + "\n".join(failures)
    return f"{len(cases)} cases"


@check(CONTRACT_CHECKS, "rejected requests create no operations")
def none_created(harness, _):
    request = worker_pb2.LeaseOperationsRequest(queues=["bad", "q"], worker_id="check", wait_timeout=seconds(0))
    assert not harness.worker.LeaseOperations(request).leases


@check(CONTRACT_CHECKS, "oversized requests are rejected, and an oversized result ends its operation")
def too_large(harness, _):
    def bytes_(size):
        return pack(wrappers_pb2.BytesValue(value=b"x" * size))

    lease = harness.create_self_executed()
    large = lambda size: create_call(harness, queued={"queue": "large", "input": bytes_(size)})  # noqa: E731
    cases = [
        ("an input above the message limit", "TOO_LARGE", "", large(5 << 20)),
        ("a metadata above it", "TOO_LARGE", "", create_call(harness, metadata=bytes_(5 << 20))),
        ("a response above it", "TOO_LARGE", "", lambda: harness.finish(lease, response=bytes_(5 << 20))),
    ]
    said = expect_errors(Code.RESOURCE_EXHAUSTED, cases)
    assert not harness.get(lease.name).done, "expected the operation to stay unfinished"
    # Above the limit of an operation only. Repeating the call is OK.
    for _ in range(2):
        done = harness.finish(lease, response=bytes_((4 << 20) - 1000))
        assert done.done and done.error.code == Code.RESOURCE_EXHAUSTED.value[0], done
    return said


@check(CONTRACT_CHECKS, "request ids and operation ids are unique")
def taken(harness, _):
    again = create_call(harness, request_id="taken-1", labels={"a": "1"})
    first, second = again(), again()
    assert second.operation.name == first.operation.name and second.already_existed and not first.already_existed
    create_call(harness, operation_id="taken-2")()
    own = create_call(harness, self_executed={"worker_id": "w"}, request_id="taken-3")
    first, second = own(), own()
    assert second.already_existed and second.lease.lease_token == first.lease.lease_token
    harness.finish(first.lease)
    third = own()
    assert third.already_existed and third.operation.done and not third.HasField("lease")
    cases = [
        ("request id", "REQUEST_ID_REUSED", "taken-1", create_call(harness, request_id="taken-1", labels={"a": "2"})),
        ("operation id", "OPERATION_EXISTS", "operations/taken-2", create_call(harness, operation_id="taken-2")),
    ]
    return expect_errors(Code.ALREADY_EXISTS, cases)


@check(CONTRACT_CHECKS, "LeaseOperations rejects invalid requests; an unknown queue is empty")
def leasing(harness, _):
    def ask(**fields):
        fields = {"queues": ["unknown"], "worker_id": "check", "wait_timeout": seconds(0), **fields}
        return lambda: harness.worker.LeaseOperations(worker_pb2.LeaseOperationsRequest(**fields))

    assert not ask()().leases
    start = time.monotonic()
    assert not ask(wait_timeout=seconds(0.5))().leases
    assert time.monotonic() - start > 0.4, "expected a wait"
    return expect_errors(INVALID, [
        ("no queues", "INVALID_QUEUE", "queues", ask(queues=[])),
        ("65 queues", "INVALID_QUEUE", "64", ask(queues=[f"q{n}" for n in range(65)])),
        ("bad queue", "INVALID_QUEUE", "queue", ask(queues=["fine", "not fine"])),
        ("no worker", "INVALID_WORKER_ID", "worker_id", ask(worker_id="")),
        ("long worker", "INVALID_WORKER_ID", "worker_id", ask(worker_id="w" * 256)),
        ("control characters", "INVALID_WORKER_ID", "worker_id", ask(worker_id="a\nb")),
        ("negative", "INVALID_MAX_LEASES", "max_leases", ask(max_leases=-1)),
        ("negative wait", "INVALID_TIMEOUT", "wait_timeout", ask(wait_timeout=seconds(-1))),
    ])


@check(CONTRACT_CHECKS, "FinishOperation rejects invalid requests and keeps the lease")
def finishing(harness, _):
    lease, other = harness.create_self_executed(), harness.create_self_executed()

    def end(**fields):
        fields = {"name": lease.name, "lease_token": lease.lease_token, **fields}
        return lambda: harness.worker.FinishOperation(worker_pb2.FinishOperationRequest(**fields))

    def failing(code=13, **fields):
        return end(failure={"error": status_pb2.Status(code=code, message="no"), **fields})

    said = expect_errors(INVALID, [
        ("no token", "INVALID_LEASE_TOKEN", "lease_token", end(lease_token=b"")),
        ("no name", "INVALID_NAME", "name", end(name="")),
        ("code 0", "INVALID_ERROR", "code", failing(0)),
        ("code 17", "INVALID_ERROR", "code", failing(17)),
        ("code -1", "INVALID_ERROR", "code", failing(-1)),
        ("no error", "INVALID_ERROR", "code", end(failure={})),
        ("negative retry_after", "INVALID_DURATION", "retry_after", failing(retry_after=seconds(-1))),
        ("response", "INVALID_ANY", "response", end(response=NO_TYPE)),
        ("metadata", "INVALID_ANY", "metadata", end(metadata=NO_MESSAGE)),
    ])
    lost = expect_errors(Code.FAILED_PRECONDITION, [
        ("token of another operation", "LEASE_LOST", lease.name, end(lease_token=other.lease_token)),
        ("a token that is none", "LEASE_LOST", lease.name, end(lease_token=b"nonsense")),
    ])
    missing = expect_errors(Code.NOT_FOUND, [
        ("unknown operation", "OPERATION_NOT_FOUND", "operations/unknown", end(name="operations/unknown")),
    ])
    (directive,) = harness.heartbeat(report(lease)).directives
    assert directive.kind == Kind.CONTINUE and not harness.get(lease.name).done
    harness.finish(lease), harness.finish(other)
    return f"{said}, {lost}, {missing}"


@check(CONTRACT_CHECKS, "the same outcome twice is OK, another one OPERATION_ALREADY_DONE")
def twice(harness, _):
    response = pack(wrappers_pb2.StringValue(value="mine"))
    failure = {"error": status_pb2.Status(code=5, message="no")}
    for outcome, others in (
        ({"response": response}, ({"failure": failure}, {}, {"release": {}})),
        ({"failure": failure}, ({"response": response}, {"failure": {"error": status_pb2.Status(code=6)}})),
        ({}, ({"response": response},)),
    ):
        lease = harness.create_self_executed()
        first = harness.finish(lease, **outcome)
        assert first.done and harness.finish(lease, **outcome) == first == harness.get(lease.name)
        for other in others:
            message = expect_error(Code.FAILED_PRECONDITION, "OPERATION_ALREADY_DONE", harness.finish, lease, **other)
        assert harness.get(lease.name) == first, "expected no change of the outcome"
    assert first.response == pack(empty_pb2.Empty()), "expected Empty without an outcome"
    return message


@check(CONTRACT_CHECKS, "a heartbeat may have no reports, many, or valid and invalid ones")
def heartbeats(harness, _):
    response = harness.heartbeat()
    assert not response.directives and response.heartbeat_interval.ToMilliseconds() > 0, response
    good, gone = harness.create_self_executed(lease_duration=seconds(3)), harness.create_self_executed()
    harness.finish(gone)
    bad = {"metadata": NO_TYPE, "progress": {"done_units": 7}}
    unknown = worker_pb2.LeaseHeartbeat(name="operations/unknown", lease_token=good.lease_token)
    stranger = worker_pb2.LeaseHeartbeat(name=good.name, lease_token=b"nonsense")
    nameless = worker_pb2.LeaseHeartbeat(lease_token=b"x")
    tokenless = worker_pb2.LeaseHeartbeat(name=good.name)
    sent = [report(good), report(good, **bad), report(good, checkpoint=NO_MESSAGE), unknown, stranger,
            nameless, tokenless, report(gone), report(good, progress={"done_units": 3})]
    time.sleep(0.5)
    response = harness.heartbeat(*sent)
    assert [d.name for d in response.directives] == [r.name for r in sent], "expected the order of the reports"
    assert [d.lease_token for d in response.directives] == [r.lease_token for r in sent]
    kinds = [Kind.Kind.Name(directive.kind) for directive in response.directives]
    errors = [reason_of(d.error) if d.HasField("error") else "" for d in response.directives]
    for directive in response.directives:
        if directive.HasField("error"):
            print(f"          {Kind.Kind.Name(directive.kind)} {directive.error.message}")
    assert list(zip(kinds, errors)) == [
        ("CONTINUE", ""),
        ("CONTINUE", "INVALID_ANY"),
        ("CONTINUE", "INVALID_ANY"),
        ("LEASE_LOST", "OPERATION_NOT_FOUND"),
        ("LEASE_LOST", "LEASE_LOST"),
        ("LEASE_LOST", "INVALID_NAME"),
        ("LEASE_LOST", "INVALID_LEASE_TOKEN"),
        ("LEASE_LOST", "OPERATION_ALREADY_DONE"),
        ("CONTINUE", ""),
    ], list(zip(kinds, errors))
    assert response.directives[3].error.code == code_pb2.NOT_FOUND
    for directive in (response.directives[1], response.directives[2]):
        assert directive.lease_remaining.ToMilliseconds() > 2900, "expected a renewed lease"
    assert response.heartbeat_interval.ToMilliseconds() == 1000, response.heartbeat_interval
    assert harness.metadata(good.name).progress.done_units == 3
    expect_error(INVALID, "INVALID_WORKER_ID", harness.worker.Heartbeat, worker_pb2.HeartbeatRequest())
    harness.finish(good)


@check(CONTRACT_CHECKS, "WatchDirectives pushes cancel, delete and lease loss immediately")
def directives(harness, _):
    def watch():
        return harness.worker.WatchDirectives(worker_pb2.WatchDirectivesRequest(worker_id="check"))

    stream = watch()
    opened = next(stream)
    assert (opened.name, opened.kind) == ("", Kind.CONTINUE), opened
    cancelled, deleted, lost = harness.create_self_executed(), harness.create_self_executed(), harness.create_self_executed(lease_duration=seconds(1))
    start = time.monotonic()
    harness.cancel(cancelled.name)
    directive = next(stream)
    elapsed = time.monotonic() - start
    assert (directive.name, directive.kind) == (cancelled.name, Kind.CANCEL_REQUESTED), directive
    assert directive.lease_token == cancelled.lease_token
    harness.server.operations.delete_operation(deleted.name)
    directive = next(stream)
    assert (directive.name, directive.kind) == (deleted.name, Kind.OPERATION_DELETED), directive
    directive = next(stream)
    assert (directive.name, directive.kind) == (lost.name, Kind.LEASE_LOST), directive
    (kind,) = harness.heartbeat(report(cancelled)).directives
    assert kind.kind == Kind.CANCEL_REQUESTED, "expected the same directive in the heartbeat"
    harness.finish(cancelled, failure={"error": status_pb2.Status(code=1, message="stopped")})
    assert harness.get(cancelled.name).error.code == code_pb2.CANCELLED
    stream.cancel()
    expect_error(INVALID, "INVALID_WORKER_ID", lambda: list(
        harness.worker.WatchDirectives(worker_pb2.WatchDirectivesRequest())))
    return f"cancel after {elapsed * 1000:.1f} ms"


@check(CONTRACT_CHECKS, "a draining heartbeat ends the open polls of that worker only")
def draining(harness, _):
    def poll(worker):
        request = worker_pb2.LeaseOperationsRequest(queues=["draining"], worker_id=worker, wait_timeout=seconds(60))
        return harness.worker.LeaseOperations.future(request)

    mine, others = poll("drains"), poll("stays")
    time.sleep(0.5)
    harness.worker.Heartbeat(worker_pb2.HeartbeatRequest(worker_id="drains", draining=True))
    assert not mine.result(timeout=20).leases
    assert not others.done()
    name = harness.create_queued("draining")
    lease = others.result(timeout=20).leases[0]
    assert lease.name == name
    harness.finish(lease)


@check(CONTRACT_CHECKS, "8 concurrent workers never get the same lease")
def once(harness, _):
    names = {harness.create_queued("once") for _ in range(200)}

    def work(number):
        request = worker_pb2.LeaseOperationsRequest(
            queues=["once"], worker_id=f"w{number}", max_leases=7, wait_timeout=seconds(0.2))
        taken = []
        while leases := harness.worker.LeaseOperations(request).leases:
            for lease in leases:
                taken.append(lease.name)
                harness.finish(lease)
        return taken

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        shares = list(pool.map(work, range(8)))
    taken = [name for share in shares for name in share]
    assert len(taken) == 200 and set(taken) == names
    return " + ".join(str(len(share)) for share in shares)


@check(CONTRACT_CHECKS, "each listener serves only its own services")
def apart(harness, _):
    clients = grpc.insecure_channel(harness.server.address)
    expect_error(
        Code.UNIMPLEMENTED, "UNKNOWN_METHOD", worker_pb2_grpc.OperationWorkerStub(clients).Heartbeat,
        worker_pb2.HeartbeatRequest(worker_id="w"))
    from google.longrunning import operations_pb2_grpc

    expect_error(
        Code.UNIMPLEMENTED, "UNKNOWN_METHOD", operations_pb2_grpc.OperationsStub(harness.channel).GetOperation,
        operations_pb2.GetOperationRequest(name="operations/x"))


@check(CONTRACT_CHECKS, "SIGTERM to the server ends polls, and directive streams end with DRAIN")
def drain_server(harness, _):
    stream = harness.worker.WatchDirectives(worker_pb2.WatchDirectivesRequest(worker_id="check"))
    next(stream)
    request = worker_pb2.LeaseOperationsRequest(queues=["empty"], worker_id="check", wait_timeout=seconds(60))
    poll = harness.worker.LeaseOperations.future(request)
    time.sleep(0.3)
    harness.server.process.send_signal(signal.SIGTERM)
    expect_error(Code.UNAVAILABLE, "SHUTTING_DOWN", poll.result, timeout=20)
    last = list(stream)[-1]
    assert last.kind == Kind.DRAIN and not last.name, last
    assert harness.server.process.wait(30) == 0


# === The run ===


def main(name, *commands):
    if name == "zombie":
        return run_zombie_worker(*commands)
    checks, example = (CONTRACT_CHECKS, None) if name == "contract" else (EXAMPLE_CHECKS, Example(*commands))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-workers-") as scratch:
        harness = Harness(scratch)
        try:
            for claim, function in checks:
                try:
                    detail = function(harness, example)
                    print(f"  ok      {claim}" + (f": {detail}" if detail else ""), flush=True)
                except Exception:
                    failed += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
            if failed:
                print("the last log lines of the server:\n" + "".join(harness.server.log[-20:]))
        finally:
            harness.server.process.kill()
            harness.server.process.wait()
    print(f"\nworker ({name}) checks: {len(checks) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
