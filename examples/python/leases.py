"""Maintains leases: sends heartbeats with reports, applies directives of the server
and reports results.

worker.py and bookstore.py share it. It implements the client side of
longrunning/v1/worker.proto; copy it into your own project. Python 3.11.
"""

import asyncio
import contextlib
import logging
import random

import grpc
from google.rpc import code_pb2
from longrunning.v1 import worker_pb2, worker_pb2_grpc

REPORT_INTERVAL = 0.25  # seconds; maximum age of the progress that clients see
MAX_HEARTBEAT_DELAY = 0.5  # seconds; maximum retry delay of a heartbeat, because leases expire
CALL_TIMEOUT = 5.0  # seconds
CONFIRM_TIMEOUT = 2  # seconds in which the first heartbeat of a lease must be answered
STABLE_STREAM_DURATION = 10.0  # seconds; a stream that lived this long resets the backoff
MAX_SHARED_REPORT_BYTES = 2048  # a larger report gets a heartbeat of its own
MAX_REPORTS = 1000  # reports in one heartbeat
TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
Directive = worker_pb2.Directive


class RetryableError(Exception):
    """A failure that another attempt may fix."""


class Job:
    """A held lease, the task that executes it, and its pending report."""

    def __init__(self, lease, handler, confirm_timeout):
        self.lease, self.loop, self.stop_reason = lease, asyncio.get_running_loop(), None
        self.confirmed = asyncio.Event()
        self.identity = {"name": lease.name, "lease_token": lease.lease_token}
        self.report = worker_pb2.LeaseHeartbeat(**self.identity)  # latest report of the handler
        # What the server has, and what the current heartbeat carries.
        self.acknowledged = self.in_flight = worker_pb2.LeaseHeartbeat(**self.identity)
        self.task = self.loop.create_task(self.run(handler, confirm_timeout))

    async def run(self, handler, confirm_timeout):
        """Runs the handler, with `confirm_timeout` when the first heartbeat is answered.
        It goes on while the server is away: only the server knows that a lease is lost."""
        if confirm_timeout:
            try:
                await asyncio.wait_for(self.confirmed.wait(), confirm_timeout)
            except TimeoutError:
                self.stop_reason = "LEASE_LOST"
                raise asyncio.CancelledError from None
        return await handler(self)

    def pending_report(self):
        """Returns the fields that changed since the last acknowledged heartbeat."""
        self.in_flight, pending = worker_pb2.LeaseHeartbeat(), worker_pb2.LeaseHeartbeat(**self.identity)
        self.in_flight.CopyFrom(self.report)
        for field, value in self.in_flight.ListFields():
            if value != getattr(self.acknowledged, field.name):
                getattr(pending, field.name).CopyFrom(value)
        return pending

    def stop(self, reason):
        if self.stop_reason is None:
            self.task.cancel()  # does nothing if the task is done
        if self.stop_reason != "LEASE_LOST":
            self.stop_reason = reason


class LeaseManager:
    """Maintains the leases of one worker."""

    def __init__(self, channel, worker_id):
        self.stub, self.id = worker_pb2_grpc.OperationWorkerStub(channel), worker_id
        self.jobs = {}  # by lease token, which is unique for each attempt
        self.draining, self.is_failing = False, False
        self.changed, self.wakeup, self.send_lock = asyncio.Event(), asyncio.Event(), asyncio.Lock()

    async def run(self):
        """Sends heartbeats and reads directives until cancelled."""
        await asyncio.gather(self.run_heartbeats(), self.read_directives())

    async def execute(self, lease, handler, confirm_timeout=None):
        """Runs `handler(job)`, which returns a message, and reports its result."""
        job = self.jobs[lease.lease_token] = Job(lease, handler, confirm_timeout)
        self.wakeup.set()  # a short lease cannot wait for the next scheduled heartbeat
        try:
            request = await finish_request(job)
            if not request.HasField("response"):
                # Only heartbeats carry checkpoints, so send the last one now.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.send_heartbeats()
            if job.stop_reason != "LEASE_LOST":
                # FinishOperation is idempotent, so it is retried after a lost response.
                lease_lost = lambda: job.stop_reason == "LEASE_LOST"
                await retry(self.stub.FinishOperation, request, CALL_TIMEOUT, lease_lost)
            if job.stop_reason == "LEASE_LOST":
                logging.warning("failed to report result of %s: lease lost", lease.name)
            else:
                outcome = job.stop_reason or request.WhichOneof("outcome")
                logging.info("%s ended attempt %d: %s", lease.name, lease.attempt, outcome)
        except grpc.aio.AioRpcError as error:
            # The lease is lost, or the server rejects the result for good. In the
            # latter case the lease expires.
            logging.warning("failed to report result of %s: %s", lease.name, error.details())
        finally:
            del self.jobs[lease.lease_token]
            self.changed.set()

    async def send_heartbeats(self):
        """Sends heartbeats for all leases. Returns the seconds until the next ones."""
        async with self.send_lock:  # of two concurrent sends, an older checkpoint could arrive last
            pending = [(job, job.pending_report()) for job in self.jobs.values()]
            small = [(job, report) for job, report in pending if report.ByteSize() <= MAX_SHARED_REPORT_BYTES]
            # The first heartbeat is sent even if it is empty: it announces a drain.
            interval = await self.send_heartbeat(small[:MAX_REPORTS])
            for start in range(MAX_REPORTS, len(small), MAX_REPORTS):
                await self.send_heartbeat(small[start : start + MAX_REPORTS])
            for job, report in pending:
                if report.ByteSize() > MAX_SHARED_REPORT_BYTES:  # a rejection costs no other lease
                    await self.send_heartbeat([(job, report)])
            return interval

    async def send_heartbeat(self, reports):
        """Sends one heartbeat. Drops a single report that the server rejects as too large."""
        request = worker_pb2.HeartbeatRequest(worker_id=self.id, draining=self.draining)
        request.reports.extend(report for _, report in reports)
        try:
            response = await self.stub.Heartbeat(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if len(reports) != 1 or not is_too_large(error):
                raise
            logging.warning("dropping oversized report: %s", error.details())
            request.reports[0].CopyFrom(worker_pb2.LeaseHeartbeat(**reports[0][0].identity))
            response = await self.stub.Heartbeat(request, timeout=CALL_TIMEOUT)
        for (job, _), directive in zip(reports, response.directives):
            job.acknowledged = job.in_flight
            if directive.kind != Directive.LEASE_LOST:
                job.confirmed.set()
            self.apply_directive(directive)
        return to_seconds(response.heartbeat_interval)

    async def run_heartbeats(self):
        delay, backoff = 0, backoff_delays()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wakeup.wait(), delay)
            self.wakeup.clear()
            try:
                interval = await self.send_heartbeats()
                delay = min(REPORT_INTERVAL, interval) if self.jobs or self.draining else interval
                backoff = backoff_delays()
                if self.is_failing:
                    logging.info("server reachable again")
                self.is_failing = False
            except grpc.aio.AioRpcError as error:
                if not self.is_failing:
                    logging.warning("heartbeat failed, retrying: %s", error.details())
                self.is_failing = True
                delay = min(next(backoff), MAX_HEARTBEAT_DELAY)

    async def read_directives(self):
        """Reads the stream of directives. It only reduces latency: heartbeats return
        the same directives."""
        loop, backoff = asyncio.get_running_loop(), backoff_delays()
        while True:
            opened = loop.time()
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = worker_pb2.WatchDirectivesRequest(worker_id=self.id)
                async for directive in self.stub.WatchDirectives(request):
                    if not directive.name and directive.kind == Directive.CONTINUE:
                        self.wakeup.set()  # the stream is open; a heartbeat fetches earlier directives
                    self.apply_directive(directive)
            if loop.time() - opened > STABLE_STREAM_DURATION:
                backoff = backoff_delays()  # not earlier: a draining server ends each stream at once
            await asyncio.sleep(next(backoff))

    def apply_directive(self, directive):
        """OPERATION_DELETED and DRAIN do not stop running work."""
        job = self.jobs.get(directive.lease_token)
        if job is None or job.task.done():
            return  # its result is being reported
        if directive.kind in (Directive.CANCEL_REQUESTED, Directive.LEASE_LOST):
            job.stop(Directive.Kind.Name(directive.kind))
        if directive.HasField("error"):
            logging.warning("%s: %s", directive.name, directive.error.message)

    async def wait_until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()


async def finish_request(job):
    """Waits for the handler and returns the FinishOperation request for its result."""
    request = worker_pb2.FinishOperationRequest(**job.identity)
    try:
        request.response.Pack(await job.task)
    except asyncio.CancelledError:
        if job.stop_reason == "CANCEL_REQUESTED":
            request.failure.error.code, request.failure.error.message = code_pb2.CANCELLED, "stopped"
        else:
            request.release.SetInParent()
    except Exception as error:
        retryable = isinstance(error, RetryableError)
        request.failure.error.code = code_pb2.UNAVAILABLE if retryable else code_pb2.INTERNAL
        request.failure.error.message, request.failure.retryable = str(error), retryable
    if job.report.HasField("metadata"):
        request.metadata.CopyFrom(job.report.metadata)
    return request


async def retry(call, request, timeout, should_stop):
    """Repeats a call until it succeeds or fails for good. Returns None if
    `should_stop()` becomes true."""
    backoff = backoff_delays()
    while True:
        try:
            return await call(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() not in TRANSIENT or is_too_large(error):
                raise
            logging.warning("call failed, retrying: %s", error.details())
        await asyncio.sleep(next(backoff))
        if should_stop():
            return None


def backoff_delays():
    """Yields seconds that grow from 0.1 to 5, with jitter, so that workers do not all
    reconnect at once when a server returns."""
    delay = 0.1
    while True:
        yield delay * random.uniform(0.5, 1)
        delay = min(2 * delay, 5)


def is_too_large(error):
    """Unlike a full store or queue, a message that is too large is not transient."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return error.code() == grpc.StatusCode.OUT_OF_RANGE or b"TOO_LARGE" in details


def to_seconds(duration):
    return duration.ToNanoseconds() / 1e9
