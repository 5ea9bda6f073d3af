"""Workers and services in other languages, against `longrunning serve`.

    workers_check.py contract              every rule of OperationWorker, by a raw stub
    workers_check.py NAME WORKER SERVICE   the examples of a language, by their commands

The examples run as processes of their own, as people would start them: one that
is stopped is stopped by a signal. One line for each check; exit code 1 if one
failed. Run by tests/clients/run in a venv of requirements.txt.
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

from google_api_core_check import DOMAIN, POLLING, Server, until  # compiles our protos
from longrunning.v1 import metadata_pb2, worker_pb2, worker_pb2_grpc

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES / "python" / "gen"))

Code = grpc.StatusCode
Kind = worker_pb2.Directive
State = metadata_pb2.OperationMetadata
ROWS = 1_000_000
# Far more than can be written before the cancellation comes.
ENDLESS_ROWS = 2_000_000_000


# === Calls ===


def packed(message):
    any_ = any_pb2.Any()
    any_.Pack(message)
    return any_


def struct(**values):
    result = struct_pb2.Struct()
    result.update(values)
    return packed(result)


def seconds(value):
    return {"seconds": int(value // 1), "nanos": round(value % 1 * 1e9)}


class World:
    """A server, its worker side as a raw stub, and its client side."""

    def __init__(self, scratch, **listeners):
        self.scratch = pathlib.Path(scratch)
        self.server = Server(scratch, **listeners)
        self.channel = grpc.insecure_channel(self.server.workers)
        self.worker = worker_pb2_grpc.OperationWorkerStub(self.channel)

    def queued(self, queue, rows=20, more=(), **terms):
        asked = worker_pb2.CreateOperationRequest(**terms)
        asked.queued.queue = queue
        asked.queued.input.CopyFrom(struct(rows=rows, **dict(more)))
        return self.worker.CreateOperation(asked).operation.name

    def own(self, **terms):
        """A lease of an operation that its creator executes."""
        asked = worker_pb2.CreateOperationRequest(self_executed={"worker_id": "check"}, **terms)
        return self.worker.CreateOperation(asked).lease

    def lease(self, queue, wait=20.0, worker="check"):
        asked = worker_pb2.LeaseOperationsRequest(queues=[queue], worker_id=worker, wait_timeout=seconds(wait))
        return self.worker.LeaseOperations(asked).leases[0]

    def beat(self, *reports):
        return self.worker.Heartbeat(worker_pb2.HeartbeatRequest(worker_id="check", reports=reports))

    def finish(self, lease, **outcome):
        end = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token, **outcome)
        return self.worker.FinishOperation(end)

    def get(self, name):
        return self.server.raw.GetOperation(operations_pb2.GetOperationRequest(name=name))

    def cancel(self, name):
        self.server.raw.CancelOperation(operations_pb2.CancelOperationRequest(name=name))

    def ended(self, name, within=30):
        request = operations_pb2.WaitOperationRequest(name=name, timeout=seconds(within))
        answer = self.server.raw.WaitOperation(request)
        assert answer.done, f"not done within {within} s: {answer}"
        return answer

    def metadata(self, name):
        metadata = metadata_pb2.OperationMetadata()
        assert self.get(name).metadata.Unpack(metadata)
        return metadata

    def result(self, name):
        """What the copying worker of the examples answers."""
        answer, result = self.ended(name), struct_pb2.Struct()
        assert answer.response.Unpack(result), answer
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


def refused(code, reason, call, *arguments, says="", **named):
    """The call fails with this code, one ErrorInfo, and a text that has `says`."""
    try:
        answer = call(*arguments, **named)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code().name}, not {code.name}: {error.details()}"
        status = rpc_status.from_call(error)
        assert status is not None, f"no details: {error.details()}"
        found = reason_of(status)
        assert found == reason, f"reason {found}, not {reason}: {error.details()}"
        assert says in error.details(), f"{says!r} is not in {error.details()!r}"
        return error.details()
    raise AssertionError(f"not refused, answered: {answer}")


# === Processes ===


class Process:
    """A command, with the lines that it prints."""

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

    def says(self, pattern):
        return [line for line in list(self.lines) if re.search(pattern, line)]

    def until_says(self, pattern, within=30):
        try:
            until(lambda: self.says(pattern), f"it says {pattern}", within)
        except AssertionError:
            raise AssertionError(f"never said {pattern!r}:\n{''.join(self.lines)}") from None
        return self.says(pattern)[0]

    def signal(self, signum):
        self.process.send_signal(signum)

    def ends(self, within=30):
        code = self.process.wait(within)
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
    def worker(self, world, queue, **environment):
        address = environment.pop("address", world and world.server.workers)
        worker = Process(self.worker_command, LONGRUNNING_WORKERS=address, QUEUE=queue, **environment)
        try:
            yield worker
        finally:
            worker.kill()

    @contextlib.contextmanager
    def service(self, world, directory):
        """The running service, and a stub for it."""
        import bookstore_pb2_grpc

        directory.mkdir(exist_ok=True)
        service = Process(
            [*self.service_command, str(directory)],
            LONGRUNNING_WORKERS=world.server.workers,
            BOOKSTORE_LISTEN="127.0.0.1:0",
        )
        try:
            address = service.until_says("listening bookstore=").split("bookstore=")[1].strip()
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


@check(EXAMPLE_CHECKS, "two workers drain a queue of 40, each operation once")
def drain_queue(world, example):
    with example.worker(world, "copy") as one, example.worker(world, "copy") as other:
        names = [world.queued("copy", rows=5) for _ in range(40)]
        results = [world.result(name) for name in names]
        assert all(result == {"rows": 5, "first": 0, "attempt": 1} for result in results), results
        begun = {name: len(one.says(f"{name} begins")) + len(other.says(f"{name} begins")) for name in names}
        assert set(begun.values()) == {1}, begun
        shares = [len(worker.says("begins")) for worker in (one, other)]
        assert all(shares), f"one of them had nothing to do: {shares}"
        return f"{shares[0]} + {shares[1]}"


@check(EXAMPLE_CHECKS, "a failed attempt is followed by another one, which has its checkpoint")
def retry(world, example):
    with example.worker(world, "retry"):
        policy = {"max_attempts": 2, "initial_backoff": seconds(0.1)}
        name = world.queued("retry", more={"breaks_at": 10}, retry_policy=policy)
        assert world.result(name) == {"rows": 20, "first": 10, "attempt": 2}
        assert world.metadata(name).attempt == 2
        name = world.queued("retry", more={"breaks_at": 10})
        error = world.ended(name).error
        assert (error.code, error.message.split(":")[0]) == (code_pb2.UNAVAILABLE, "the source went away"), error
        return "attempt 2 went on at row 10; without a retry policy the failure is the end"


@check(EXAMPLE_CHECKS, "its progress is seen while it works")
def progress(world, example):
    with example.worker(world, "progress"):
        name = world.queued("progress", rows=500)
        until(lambda: world.metadata(name).progress.done_units > 20, "it grows")
        seen = world.metadata(name).progress
        assert (seen.total_units, seen.unit) == (500, "rows"), seen
        world.cancel(name)


@check(EXAMPLE_CHECKS, "a cancellation stops the work at once, and no attempt follows")
def cancel(world, example):
    with example.worker(world, "cancel") as worker:
        name = world.queued("cancel", rows=10_000, retry_policy={"max_attempts": 3})
        worker.until_says(f"{name} begins")
        time.sleep(0.3)
        asked = time.monotonic()
        world.cancel(name)
        error = world.ended(name).error
        took = time.monotonic() - asked
        assert error.code == code_pb2.CANCELLED, error
        assert world.metadata(name).attempt == 1
        return f"done {took * 1000:.0f} ms after the call of CancelOperation"


@check(EXAMPLE_CHECKS, "SIGTERM: the open poll ends, what is short is finished, what is long is given back")
def sigterm(world, example):
    with example.worker(world, "idle") as idle:
        name = world.queued("idle", rows=1)
        world.ended(name)
        time.sleep(0.5)  # it polls again, for 30 s
        idle.signal(signal.SIGTERM)
        idle.ends(within=15)
    with example.worker(world, "drain", DRAIN="3s") as worker:
        long, short = world.queued("drain", rows=10_000), world.queued("drain", rows=75)
        worker.until_says(f"{long} begins"), worker.until_says(f"{short} begins")
        until(lambda: world.metadata(long).progress.done_units > 10, "there is something to keep")
        worker.signal(signal.SIGTERM)
        time.sleep(0.5)
        late = world.queued("drain", rows=1)
        worker.ends()
        assert world.result(short)["attempt"] == 1
        assert world.metadata(long).state == State.PENDING, world.metadata(long)
        assert world.metadata(late).attempt == 0, "it took one more while it drained"
    lease = world.lease("drain")
    kept = struct_pb2.Struct()
    assert lease.name == long and lease.checkpoint.Unpack(kept) and kept["next"] > 10, lease
    world.finish(lease)
    return f"the next attempt has number {lease.attempt} and row {kept['next']:.0f}"


@check(EXAMPLE_CHECKS, "a worker that is stopped past its lease wakes up, finishes nothing, and goes on with others")
def stopped(world, example):
    with example.worker(world, "stopped") as worker:
        # More than two, for the poll that it has open may be handed one too.
        terms = {"lease_duration": seconds(1), "retry_policy": {"max_attempts": 5, "initial_backoff": seconds(0.1)}}
        name = world.queued("stopped", rows=100, **terms)
        until(lambda: world.metadata(name).progress.done_units > 10, "there is something to keep")
        worker.signal(signal.SIGSTOP)
        lease = world.lease("stopped")
        assert lease.name == name and lease.attempt >= 2, lease
        assert lease.HasField("checkpoint"), "its checkpoint outlives it"
        world.finish(lease, response=packed(wrappers_pb2.StringValue(value="the other attempt")))
        before = world.get(name)
        worker.signal(signal.SIGCONT)
        after = world.queued("stopped", rows=1)
        assert world.result(after)["attempt"] == 1
        time.sleep(2.5)  # longer than the rest of its rows
        assert world.get(name) == before, "the outcome changed"
        assert not worker.says(f"{name} ended"), "it recorded an end"


@check(EXAMPLE_CHECKS, "a worker outlives its server: it begins before it, and goes on after a restart")
def restart(_world, example):
    addresses = {"listen": free_address(), "worker_listen": free_address()}
    with example.worker(None, "restart", address=addresses["worker_listen"]) as worker:
        time.sleep(1)
        for _ in range(2):
            with tempfile.TemporaryDirectory() as scratch:
                world = World(scratch, **addresses)
                try:
                    assert world.result(world.queued("restart", rows=1))["rows"] == 1
                    # This one is in memory, and so it is gone with the server.
                    name = world.queued("restart", rows=10_000)
                    worker.until_says(f"{name} begins")
                finally:
                    world.channel.close()
                    world.server.process.kill()
                    world.server.process.wait()
        assert worker.process.poll() is None, "".join(worker.lines)


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@check(EXAMPLE_CHECKS, f"the bookstore exports {ROWS} books while Google's future follows it")
def export(world, example):
    import bookstore_pb2

    directory = world.scratch / f"export-{time.monotonic_ns()}"
    with example.service(world, directory) as (_, bookstore):
        request = bookstore_pb2.ExportBooksRequest(rows=ROWS, request_id=os.urandom(16).hex())
        began = time.monotonic()
        started = bookstore.ExportBooks(request)
        answered = time.monotonic() - began
        future = operation.from_gapic(
            started,
            world.server.operations,
            bookstore_pb2.ExportBooksResponse,
            metadata_type=bookstore_pb2.ExportBooksMetadata,
            polling=POLLING,
        )
        percents = [future.metadata.progress_percent]
        while not future.done():
            percents.append(future.metadata.progress_percent)
            time.sleep(0.05)
        result = future.result(timeout=120)
        took = time.monotonic() - began
        percents.append(future.metadata.progress_percent)
        assert percents == sorted(percents), percents
        assert percents[0] == 0 and percents[-1] == 100, percents
        assert [p for p in percents if 0 < p < 100], f"nothing between: {percents}"
        with open(result.path) as file:
            assert sum(1 for _ in file) == ROWS + 1 == result.rows + 1
        again = bookstore.ExportBooks(request)
        assert again.name == started.name and again.done, "the same request is the same operation"
        assert [file.name for file in directory.iterdir()] == [pathlib.Path(result.path).name]
        refusal = refused(
            Code.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            bookstore.ExportBooks,
            bookstore_pb2.ExportBooksRequest(rows=1, request_id=request.request_id),
        )
        assert refusal
        listed = world.get(started.name).metadata
        assert listed.type_url == "type.googleapis.com/bookstore.v1.ExportBooksMetadata"
        shown = " ".join(f"{p}%" for p in dict.fromkeys(percents))
        return f"answered after {answered * 1000:.0f} ms, {took:.1f} s in all: {shown}"


@check(EXAMPLE_CHECKS, "a cancelled export stops, and its partial file is gone")
def cancel_export(world, example):
    import bookstore_pb2

    directory = world.scratch / f"cancel-{time.monotonic_ns()}"
    with example.service(world, directory) as (_, bookstore):
        times = []
        for _ in range(5):
            future = operation.from_gapic(
                bookstore.ExportBooks(bookstore_pb2.ExportBooksRequest(rows=ENDLESS_ROWS)),
                world.server.operations,
                bookstore_pb2.ExportBooksResponse,
                metadata_type=bookstore_pb2.ExportBooksMetadata,
                polling=POLLING,
            )
            until(lambda: future.metadata.rows > 0 or future.done(), "it writes")
            assert len(list(directory.glob("*.part"))) == 1
            asked = time.monotonic()
            world.cancel(future.operation.name)
            # The service finishes when its thread has stopped and the file is
            # gone, so the end that clients see is the end of the work.
            world.ended(future.operation.name)
            times.append((time.monotonic() - asked) * 1000)
            assert not list(directory.iterdir()), "the partial file is still there"
            with contextlib.suppress(exceptions.Cancelled):
                raise AssertionError(f"a result: {future.result(timeout=30)}")
        shown = ", ".join(f"{time_:.0f}" for time_ in times)
        return f"from the call of CancelOperation to stopped, removed and recorded: {shown} ms"


@check(EXAMPLE_CHECKS, "SIGTERM to the service ends its exports as WORKER_LOST, and leaves no partial file")
def stop_service(world, example):
    import bookstore_pb2

    directory = world.scratch / f"stop-{time.monotonic_ns()}"
    with example.service(world, directory) as (service, bookstore):
        name = bookstore.ExportBooks(bookstore_pb2.ExportBooksRequest(rows=ENDLESS_ROWS)).name
        until(lambda: list(directory.glob("*.part")), "it writes")
        service.signal(signal.SIGTERM)
        service.ends()
        error = world.ended(name).error
        assert (error.code, reason_of(error)) == (code_pb2.UNAVAILABLE, "WORKER_LOST"), error
        assert not list(directory.iterdir())


# === Checks of the contract ===


@check(CONTRACT_CHECKS, "a zombie's finish is refused as LEASE_LOST, the other attempt's outcome stands")
def zombie(world, _):
    terms = {"lease_duration": seconds(1), "retry_policy": {"max_attempts": 2}}
    name = world.queued("zombie", **terms)
    process = Process([sys.executable, __file__, "zombie", world.server.workers])
    try:
        process.until_says("leased")
        process.signal(signal.SIGSTOP)
        lease = world.lease("zombie")
        assert lease.name == name and lease.attempt == 2, lease
        process.signal(signal.SIGCONT)
        line = process.until_says("finish:")
        assert re.search(r"FAILED_PRECONDITION LEASE_LOST .*another attempt holds", line), line
        process.ends()
    finally:
        process.kill()
    mine = packed(wrappers_pb2.StringValue(value="the other attempt"))
    assert world.finish(lease, response=mine).response == mine
    assert world.get(name).response == mine
    return line.split("LEASE_LOST ")[1].strip()


def be_a_zombie(address):
    """Takes a lease, is stopped over its end by a signal, and finishes after it."""
    stub = worker_pb2_grpc.OperationWorkerStub(grpc.insecure_channel(address))
    asked = worker_pb2.LeaseOperationsRequest(queues=["zombie"], worker_id="zombie")
    lease = stub.LeaseOperations(asked).leases[0]
    print("leased", flush=True)
    time.sleep(0.9)
    end = worker_pb2.FinishOperationRequest(name=lease.name, lease_token=lease.lease_token)
    try:
        stub.FinishOperation(end)
        print("finish: OK", flush=True)
    except grpc.RpcError as error:
        reason = reason_of(rpc_status.from_call(error))
        print(f"finish: {error.code().name} {reason} {error.details()}", flush=True)


@check(CONTRACT_CHECKS, "a lease that ran out with nobody else is LEASE_LOST and says so, and ends as WORKER_LOST")
def ran_out(world, _):
    lease = world.own(lease_duration=seconds(1))
    error = world.ended(lease.name, within=10).error
    assert (error.code, reason_of(error)) == (code_pb2.UNAVAILABLE, "WORKER_LOST"), error
    refused(Code.FAILED_PRECONDITION, "OPERATION_ALREADY_DONE", world.finish, lease)
    (directive,) = world.beat(report(lease)).directives
    assert directive.kind == Kind.LEASE_LOST and directive.error.message, directive
    return error.message


def report(lease, **more):
    return worker_pb2.LeaseHeartbeat(name=lease.name, lease_token=lease.lease_token, **more)


def creating(world, **fields):
    """CreateOperation for a queue, unless `fields` says otherwise."""
    if not {"self_executed", "queued"} & fields.keys():
        fields["queued"] = {"queue": "bad"}
    return lambda: world.worker.CreateOperation(worker_pb2.CreateOperationRequest(**fields))


NO_TYPE = any_pb2.Any(value=b"something")
NO_MESSAGE = any_pb2.Any(type_url="type.googleapis.com/not a message")
INVALID = Code.INVALID_ARGUMENT


@check(CONTRACT_CHECKS, "CreateOperation refuses what is wrong, and says which field and why")
def bad_creations(world, _):
    label = {"k" * 5: "v"}
    cases = [
        ("no execution", "INVALID_EXECUTION", "execution", lambda: world.worker.CreateOperation(
            worker_pb2.CreateOperationRequest())),
        ("no queue", "INVALID_QUEUE", "queue", creating(world, queued={})),
        ("bad queue", "INVALID_QUEUE", "queue", creating(world, queued={"queue": "a b"})),
        ("long queue", "INVALID_QUEUE", "queue", creating(world, queued={"queue": "q" * 64})),
        ("no worker", "INVALID_WORKER_ID", "worker_id", creating(world, self_executed={})),
        ("long worker", "INVALID_WORKER_ID", "worker_id", creating(world, self_executed={"worker_id": "w" * 256})),
        ("parent", "INVALID_NAME", "parent", creating(world, parent="projects")),
        ("id", "INVALID_NAME", "operation_id", creating(world, operation_id="Not-Lower")),
        ("request id", "INVALID_REQUEST_ID", "request_id", creating(world, request_id="r" * 256)),
        ("method", "INVALID_METHOD", "method", creating(world, method="m" * 256)),
        ("input without a type", "INVALID_ANY", "input", creating(world, queued={"queue": "q", "input": NO_TYPE})),
        ("input of no message", "INVALID_ANY", "input", creating(world, queued={"queue": "q", "input": NO_MESSAGE})),
        ("metadata", "INVALID_ANY", "metadata", creating(world, metadata=NO_TYPE)),
        ("65 labels", "INVALID_LABELS", "64", creating(world, labels={f"k{n}": "" for n in range(65)})),
        ("label key", "INVALID_LABELS", "Key", creating(world, labels={"Key": "v"})),
        ("64 KiB label", "INVALID_LABELS", "255", creating(world, labels=dict.fromkeys(label, "v" * 65536))),
        ("lease below 1 s", "INVALID_EXECUTION_OPTIONS", "lease_duration", creating(world, lease_duration=seconds(0.999))),
        ("attempts", "INVALID_EXECUTION_OPTIONS", "max_attempts", creating(world, retry_policy={"max_attempts": -1})),
        ("multiplier", "INVALID_EXECUTION_OPTIONS", "multiplier", creating(world, retry_policy={"multiplier": 0.5})),
        ("large multiplier", "INVALID_EXECUTION_OPTIONS", "multiplier", creating(world, retry_policy={"multiplier": 1001})),
        ("no number", "INVALID_EXECUTION_OPTIONS", "multiplier", creating(world, retry_policy={"multiplier": float("nan")})),
        ("jitter", "INVALID_EXECUTION_OPTIONS", "jitter", creating(world, retry_policy={"jitter": 1.5})),
        ("max below initial", "INVALID_EXECUTION_OPTIONS", "max_backoff", creating(
            world, retry_policy={"initial_backoff": seconds(9), "max_backoff": seconds(1)})),
        ("endless backoff", "INVALID_EXECUTION_OPTIONS", "max_backoff", creating(
            world, retry_policy={"max_backoff": seconds(400 * 86400)})),
        ("negative backoff", "INVALID_DURATION", "retry_policy", creating(
            world, retry_policy={"initial_backoff": seconds(-1)})),
        ("retries of one's own", "INVALID_EXECUTION_OPTIONS", "retry_policy", creating(
            world, self_executed={"worker_id": "w"}, retry_policy={"max_attempts": 2})),
        ("no time at all", "INVALID_EXECUTION_OPTIONS", "total_timeout", creating(world, total_timeout=seconds(0))),
        ("year 0", "INVALID_TIME", "not_before", creating(
            world, queued={"queue": "q", "not_before": {"seconds": -10**12}})),
        ("nanos", "INVALID_TIME", "not_before", creating(
            world, queued={"queue": "q", "not_before": {"nanos": -1}})),
        ("trace", "INVALID_TRACE_CONTEXT", "trace_context", creating(world, trace_context={"Trace Parent": "x"})),
        ("9 traces", "INVALID_TRACE_CONTEXT", "trace_context", creating(
            world, trace_context={f"t{n}": "x" for n in range(9)})),
    ]
    for field in ("total_timeout", "attempt_timeout", "lease_duration", "retention", "cancel_grace_period"):
        cases.append((f"negative {field}", "INVALID_DURATION", field, creating(world, **{field: seconds(-1)})))
        mixed = {"seconds": 1, "nanos": -1}
        cases.append((f"mixed {field}", "INVALID_DURATION", field, creating(world, **{field: mixed})))
    return all_refused(INVALID, cases)


def all_refused(code, cases):
    """Each of them, so that one run tells all that is wrong."""
    wrong = []
    for title, reason, says, call in cases:
        try:
            text = refused(code, reason, call, says=says)
            print(f"          {reason} {text}")
        except AssertionError as error:
            wrong.append(f"{title}: {error}")
    assert not wrong, "\n" + "\n".join(wrong)
    return f"{len(cases)} cases"


@check(CONTRACT_CHECKS, "nothing of what was refused was created")
def none_created(world, _):
    asked = worker_pb2.LeaseOperationsRequest(queues=["bad", "q"], worker_id="check", wait_timeout=seconds(0))
    assert not world.worker.LeaseOperations(asked).leases


@check(CONTRACT_CHECKS, "what is too large is RESOURCE_EXHAUSTED, TOO_LARGE")
def too_large(world, _):
    def bytes_(size):
        return packed(wrappers_pb2.BytesValue(value=b"x" * size))

    lease = world.own()
    large = lambda size: creating(world, queued={"queue": "large", "input": bytes_(size)})  # noqa: E731
    cases = [
        ("an input above the message limit", "TOO_LARGE", "", large(5 << 20)),
        ("a metadata above it", "TOO_LARGE", "", creating(world, metadata=bytes_(5 << 20))),
        ("a response above it", "TOO_LARGE", "", lambda: world.finish(lease, response=bytes_(5 << 20))),
        ("a response above the limit of an operation", "TOO_LARGE", "response", lambda: world.finish(
            lease, response=bytes_((4 << 20) - 1000))),
    ]
    said = all_refused(Code.RESOURCE_EXHAUSTED, cases)
    assert not world.get(lease.name).done, "a refused response ended it"
    world.finish(lease)
    return said


@check(CONTRACT_CHECKS, "a request id and an operation id are taken once")
def taken(world, _):
    again = creating(world, request_id="taken-1", labels={"a": "1"})
    first, second = again(), again()
    assert second.operation.name == first.operation.name and second.already_existed and not first.already_existed
    creating(world, operation_id="taken-2")()
    own = creating(world, self_executed={"worker_id": "w"}, request_id="taken-3")
    first, second = own(), own()
    assert second.already_existed and second.lease.lease_token == first.lease.lease_token
    world.finish(first.lease)
    third = own()
    assert third.already_existed and third.operation.done and not third.HasField("lease")
    cases = [
        ("request id", "REQUEST_ID_REUSED", "taken-1", creating(world, request_id="taken-1", labels={"a": "2"})),
        ("operation id", "OPERATION_EXISTS", "operations/taken-2", creating(world, operation_id="taken-2")),
    ]
    return all_refused(Code.ALREADY_EXISTS, cases)


@check(CONTRACT_CHECKS, "LeaseOperations refuses what is wrong; an unknown queue has nothing, without an error")
def leasing(world, _):
    def ask(**fields):
        fields = {"queues": ["nobodys"], "worker_id": "check", "wait_timeout": seconds(0), **fields}
        return lambda: world.worker.LeaseOperations(worker_pb2.LeaseOperationsRequest(**fields))

    assert not ask()().leases
    began = time.monotonic()
    assert not ask(wait_timeout=seconds(0.5))().leases
    assert time.monotonic() - began > 0.4, "it did not wait"
    return all_refused(INVALID, [
        ("no queues", "INVALID_QUEUE", "queues", ask(queues=[])),
        ("65 queues", "INVALID_QUEUE", "64", ask(queues=[f"q{n}" for n in range(65)])),
        ("bad queue", "INVALID_QUEUE", "queue", ask(queues=["fine", "not fine"])),
        ("no worker", "INVALID_WORKER_ID", "worker_id", ask(worker_id="")),
        ("long worker", "INVALID_WORKER_ID", "worker_id", ask(worker_id="w" * 256)),
        ("control characters", "INVALID_WORKER_ID", "worker_id", ask(worker_id="a\nb")),
        ("negative", "INVALID_MAX_LEASES", "max_leases", ask(max_leases=-1)),
        ("negative wait", "INVALID_TIMEOUT", "wait_timeout", ask(wait_timeout=seconds(-1))),
    ])


@check(CONTRACT_CHECKS, "FinishOperation refuses what is wrong, and the lease is still held")
def finishing(world, _):
    lease, other = world.own(), world.own()

    def end(**fields):
        fields = {"name": lease.name, "lease_token": lease.lease_token, **fields}
        return lambda: world.worker.FinishOperation(worker_pb2.FinishOperationRequest(**fields))

    def failing(code=13, **fields):
        return end(failure={"error": status_pb2.Status(code=code, message="no"), **fields})

    said = all_refused(INVALID, [
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
    lost = all_refused(Code.FAILED_PRECONDITION, [
        ("token of another operation", "LEASE_LOST", lease.name, end(lease_token=other.lease_token)),
        ("a token that is none", "LEASE_LOST", lease.name, end(lease_token=b"nonsense")),
    ])
    missing = all_refused(Code.NOT_FOUND, [
        ("unknown operation", "OPERATION_NOT_FOUND", "operations/unknown", end(name="operations/unknown")),
    ])
    (directive,) = world.beat(report(lease)).directives
    assert directive.kind == Kind.CONTINUE and not world.get(lease.name).done
    world.finish(lease), world.finish(other)
    return f"{said}, {lost}, {missing}"


@check(CONTRACT_CHECKS, "the same end twice is OK, another one OPERATION_ALREADY_DONE")
def twice(world, _):
    response = packed(wrappers_pb2.StringValue(value="mine"))
    failure = {"error": status_pb2.Status(code=5, message="no")}
    for outcome, others in (
        ({"response": response}, ({"failure": failure}, {}, {"release": {}})),
        ({"failure": failure}, ({"response": response}, {"failure": {"error": status_pb2.Status(code=6)}})),
        ({}, ({"response": response},)),
    ):
        lease = world.own()
        first = world.finish(lease, **outcome)
        assert first.done and world.finish(lease, **outcome) == first == world.get(lease.name)
        for other in others:
            text = refused(Code.FAILED_PRECONDITION, "OPERATION_ALREADY_DONE", world.finish, lease, **other)
        assert world.get(lease.name) == first, "the outcome changed"
    assert first.response == packed(empty_pb2.Empty()), "an end without an outcome is Empty"
    return text


@check(CONTRACT_CHECKS, "a heartbeat: none, many, bad ones among good ones")
def heartbeats(world, _):
    answer = world.beat()
    assert not answer.directives and answer.heartbeat_interval.ToMilliseconds() > 0, answer
    good, gone = world.own(lease_duration=seconds(3)), world.own()
    world.finish(gone)
    bad = {"metadata": NO_TYPE, "progress": {"done_units": 7}}
    unknown = worker_pb2.LeaseHeartbeat(name="operations/unknown", lease_token=good.lease_token)
    stranger = worker_pb2.LeaseHeartbeat(name=good.name, lease_token=b"nonsense")
    nameless = worker_pb2.LeaseHeartbeat(lease_token=b"x")
    tokenless = worker_pb2.LeaseHeartbeat(name=good.name)
    sent = [report(good), report(good, **bad), report(good, checkpoint=NO_MESSAGE), unknown, stranger,
            nameless, tokenless, report(gone), report(good, progress={"done_units": 3})]
    time.sleep(0.5)
    answer = world.beat(*sent)
    assert [d.name for d in answer.directives] == [r.name for r in sent], "not in the order of the reports"
    assert [d.lease_token for d in answer.directives] == [r.lease_token for r in sent]
    kinds = [Kind.Kind.Name(directive.kind) for directive in answer.directives]
    errors = [reason_of(d.error) if d.HasField("error") else "" for d in answer.directives]
    for directive in answer.directives:
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
    assert answer.directives[3].error.code == code_pb2.NOT_FOUND
    for directive in (answer.directives[1], answer.directives[2]):
        assert directive.lease_remaining.ToMilliseconds() > 2900, "the lease was not renewed"
    assert answer.heartbeat_interval.ToMilliseconds() == 1000, answer.heartbeat_interval
    assert world.metadata(good.name).progress.done_units == 3
    refused(INVALID, "INVALID_WORKER_ID", world.worker.Heartbeat, worker_pb2.HeartbeatRequest())
    world.finish(good)


@check(CONTRACT_CHECKS, "WatchDirectives: open, cancelled, deleted, lost; each at once")
def directives(world, _):
    def watch():
        return world.worker.WatchDirectives(worker_pb2.WatchDirectivesRequest(worker_id="check"))

    stream = watch()
    opened = next(stream)
    assert (opened.name, opened.kind) == ("", Kind.CONTINUE), opened
    cancelled, deleted, lost = world.own(), world.own(), world.own(lease_duration=seconds(1))
    asked = time.monotonic()
    world.cancel(cancelled.name)
    directive = next(stream)
    took = time.monotonic() - asked
    assert (directive.name, directive.kind) == (cancelled.name, Kind.CANCEL_REQUESTED), directive
    assert directive.lease_token == cancelled.lease_token
    world.server.operations.delete_operation(deleted.name)
    directive = next(stream)
    assert (directive.name, directive.kind) == (deleted.name, Kind.OPERATION_DELETED), directive
    directive = next(stream)
    assert (directive.name, directive.kind) == (lost.name, Kind.LEASE_LOST), directive
    (kind,) = world.beat(report(cancelled)).directives
    assert kind.kind == Kind.CANCEL_REQUESTED, "the heartbeat does not tell what the stream told"
    world.finish(cancelled, failure={"error": status_pb2.Status(code=1, message="stopped")})
    assert world.get(cancelled.name).error.code == code_pb2.CANCELLED
    stream.cancel()
    refused(INVALID, "INVALID_WORKER_ID", lambda: list(
        world.worker.WatchDirectives(worker_pb2.WatchDirectivesRequest())))
    return f"the cancellation after {took * 1000:.1f} ms"


@check(CONTRACT_CHECKS, "a draining heartbeat ends the open polls of that worker, and of no other")
def draining(world, _):
    def poll(worker):
        asked = worker_pb2.LeaseOperationsRequest(queues=["draining"], worker_id=worker, wait_timeout=seconds(60))
        return world.worker.LeaseOperations.future(asked)

    mine, others = poll("drains"), poll("stays")
    time.sleep(0.5)
    world.worker.Heartbeat(worker_pb2.HeartbeatRequest(worker_id="drains", draining=True))
    assert not mine.result(timeout=20).leases
    assert not others.done()
    name = world.queued("draining")
    lease = others.result(timeout=20).leases[0]
    assert lease.name == name
    world.finish(lease)


@check(CONTRACT_CHECKS, "no lease is handed to two of 8 workers that poll at once")
def once(world, _):
    names = {world.queued("once") for _ in range(200)}

    def work(number):
        asked = worker_pb2.LeaseOperationsRequest(
            queues=["once"], worker_id=f"w{number}", max_leases=7, wait_timeout=seconds(0.2))
        taken = []
        while leases := world.worker.LeaseOperations(asked).leases:
            for lease in leases:
                taken.append(lease.name)
                world.finish(lease)
        return taken

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        shares = list(pool.map(work, range(8)))
    taken = [name for share in shares for name in share]
    assert len(taken) == 200 and set(taken) == names
    return " + ".join(str(len(share)) for share in shares)


@check(CONTRACT_CHECKS, "the worker side is not on the clients' listener, nor the other way round")
def apart(world, _):
    clients = grpc.insecure_channel(world.server.address)
    refused(
        Code.UNIMPLEMENTED, "UNKNOWN_METHOD", worker_pb2_grpc.OperationWorkerStub(clients).Heartbeat,
        worker_pb2.HeartbeatRequest(worker_id="w"))
    from google.longrunning import operations_pb2_grpc

    refused(
        Code.UNIMPLEMENTED, "UNKNOWN_METHOD", operations_pb2_grpc.OperationsStub(world.channel).GetOperation,
        operations_pb2.GetOperationRequest(name="operations/x"))


@check(CONTRACT_CHECKS, "SIGTERM to the server: polls end, and the stream says DRAIN before it ends")
def drain_server(world, _):
    stream = world.worker.WatchDirectives(worker_pb2.WatchDirectivesRequest(worker_id="check"))
    next(stream)
    asked = worker_pb2.LeaseOperationsRequest(queues=["empty"], worker_id="check", wait_timeout=seconds(60))
    poll = world.worker.LeaseOperations.future(asked)
    time.sleep(0.3)
    world.server.process.send_signal(signal.SIGTERM)
    refused(Code.UNAVAILABLE, "SHUTTING_DOWN", poll.result, timeout=20)
    last = list(stream)[-1]
    assert last.kind == Kind.DRAIN and not last.name, last
    assert world.server.process.wait(30) == 0


# === The run ===


def main(name, *commands):
    if name == "zombie":
        return be_a_zombie(*commands)
    checks, example = (CONTRACT_CHECKS, None) if name == "contract" else (EXAMPLE_CHECKS, Example(*commands))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-workers-") as scratch:
        world = World(scratch)
        try:
            for claim, function in checks:
                try:
                    detail = function(world, example)
                    print(f"  ok      {claim}" + (f": {detail}" if detail else ""), flush=True)
                except Exception:
                    failed += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
            if failed:
                print("the last lines of the server:\n" + "".join(world.server.log[-20:]))
        finally:
            world.server.process.kill()
            world.server.process.wait()
    print(f"\nworker ({name}) checks: {len(checks) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
