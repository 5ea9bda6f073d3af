"""Works under leases: keeps them, obeys the server, and says how the work ended.

The part that worker.py and bookstore.py share, and the one to copy: it is where
the rules of longrunning/v1/worker.proto are. Python 3.11.
"""

import asyncio
import contextlib
import logging
import random

import grpc
from google.rpc import code_pb2
from longrunning.v1 import worker_pb2, worker_pb2_grpc

BEAT = 0.25  # seconds: how old the progress that clients see may be
CALL = 5.0  # seconds: the deadline of a call
STEADY = 10.0  # seconds after which a stream was a good one
SMALL, MOST = 2048, 1000  # bytes of a report that shares a heartbeat; reports of one
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
Directive = worker_pb2.Directive


class Retryable(Exception):
    """Another attempt may succeed."""


class Job:
    """A lease, the work under it, and what the next heartbeat tells about it."""

    def __init__(self, lease, work):
        self.lease, self.loop, self.why = lease, asyncio.get_running_loop(), None
        self.proof = {"name": lease.name, "lease_token": lease.lease_token}
        self.report = worker_pb2.LeaseHeartbeat(**self.proof)  # all there is to tell
        self.told = self.sent = worker_pb2.LeaseHeartbeat(**self.proof)  # what the server knows
        self.over = None
        self.renew(self.loop.time(), lease.lease_remaining)
        self.work = self.loop.create_task(work(self))

    def renew(self, since, remaining):
        """Not renewed in time, the lease is lost; nobody needs to say so."""
        if self.over:
            self.over.cancel()
        self.over = self.loop.call_at(since + seconds(remaining), self.stop, "LEASE_LOST")

    def news(self):
        """What changed since the last heartbeat that got through."""
        self.sent, news = worker_pb2.LeaseHeartbeat(), worker_pb2.LeaseHeartbeat(**self.proof)
        self.sent.CopyFrom(self.report)
        for field, value in self.sent.ListFields():
            if value != getattr(self.told, field.name):
                getattr(news, field.name).CopyFrom(value)
        return news

    def stop(self, why):
        if self.why is None:
            self.work.cancel()  # does nothing to work that is done
        if self.why != "LEASE_LOST":
            self.why = why


class Keeper:
    """Everything that one worker works on."""

    def __init__(self, channel, worker_id):
        self.stub, self.id = worker_pb2_grpc.OperationWorkerStub(channel), worker_id
        self.jobs = {}  # by token, which is new for each attempt
        self.draining = False
        self.change, self.hurry, self.one_beat = asyncio.Event(), asyncio.Event(), asyncio.Lock()

    async def run(self):
        """Keeps the leases, for as long as the worker lives."""
        await asyncio.gather(self.heartbeats(), self.directives())

    async def execute(self, lease, work):
        """Runs `work(job)`, which returns a message, up to the recorded end."""
        job = self.jobs[lease.lease_token] = Job(lease, work)
        self.hurry.set()  # a short lease cannot wait for the next beat
        try:
            end = await outcome(job)
            if not end.HasField("response"):
                # So that a checkpoint is not lost: only heartbeats have it.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.beat()
            if job.why != "LEASE_LOST":
                await tries(self.stub.FinishOperation, end, CALL, lambda: job.why == "LEASE_LOST")
            if job.why == "LEASE_LOST":
                logging.warning("not finished: the lease of %s is lost", lease.name)
            else:
                logging.info("%s ended attempt %d: %s", lease.name, lease.attempt, job.why or "by itself")
        except grpc.aio.AioRpcError as error:
            # The lease is lost, and the operation another's. Or the server does
            # not take what we say, and would not later: the lease runs out.
            logging.warning("not finished: %s", error.details())
        finally:
            job.over.cancel()
            del self.jobs[lease.lease_token]
            self.change.set()

    async def beat(self):
        async with self.one_beat:  # or an older checkpoint overtakes a newer one
            jobs = [(job, job.news()) for job in self.jobs.values()]
            small = [(job, news) for job, news in jobs if news.ByteSize() <= SMALL]
            # An empty one says at least that the worker drains.
            latest = await self.tell(small[:MOST])
            for start in range(MOST, len(small), MOST):
                await self.tell(small[start : start + MOST])
            for job, news in jobs:
                if news.ByteSize() > SMALL:  # alone, so that it costs no lease of another
                    await self.tell([(job, news)])
            return latest

    async def tell(self, jobs):
        """One heartbeat. A large report that the server refuses is left out."""
        since = asyncio.get_running_loop().time()
        request = worker_pb2.HeartbeatRequest(worker_id=self.id, draining=self.draining)
        request.reports.extend(news for _, news in jobs)
        try:
            answer = await self.stub.Heartbeat(request, timeout=CALL)
        except grpc.aio.AioRpcError as error:
            if len(jobs) != 1 or not too_large(error):
                raise
            logging.warning("a report is dropped: %s", error.details())
            request.reports[0].CopyFrom(worker_pb2.LeaseHeartbeat(**jobs[0][0].proof))
            answer = await self.stub.Heartbeat(request, timeout=CALL)
        for (job, _), directive in zip(jobs, answer.directives):
            job.told = job.sent
            if directive.kind != Directive.LEASE_LOST and job.lease.lease_token in self.jobs:
                job.renew(since, directive.lease_remaining)
            self.obey(directive)
        return seconds(answer.heartbeat_interval)

    async def heartbeats(self):
        pause, waits = 0, pauses()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hurry.wait(), pause)
            self.hurry.clear()
            try:
                latest = await self.beat()
                pause, waits = min(BEAT, latest) if self.jobs or self.draining else latest, pauses()
            except grpc.aio.AioRpcError as error:
                logging.warning("no heartbeat: %s", error.details())
                pause = min(next(waits), 0.5)  # leases run out

    async def directives(self):
        """Only a hint, but a quick one. What it misses a heartbeat tells."""
        loop, waits = asyncio.get_running_loop(), pauses()
        while True:
            opened = loop.time()
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = worker_pb2.WatchDirectivesRequest(worker_id=self.id)
                async for directive in self.stub.WatchDirectives(request):
                    if not directive.name and directive.kind == Directive.CONTINUE:
                        self.hurry.set()  # it has opened; what came before is not on it
                    self.obey(directive)
            if loop.time() - opened > STEADY:
                waits = pauses()  # not before: a server that drains ends each at once
            await asyncio.sleep(next(waits))

    def obey(self, directive):
        """OPERATION_DELETED and DRAIN stop nothing: what runs may come to its end."""
        job = self.jobs.get(directive.lease_token)
        if job is None or job.work.done():
            return  # its end is on the way
        if directive.kind in (Directive.CANCEL_REQUESTED, Directive.LEASE_LOST):
            job.stop(Directive.Kind.Name(directive.kind))
        if directive.HasField("error"):
            logging.warning("%s", directive.error.message)

    async def until(self, holds):
        while not holds():
            self.change.clear()
            await self.change.wait()


async def outcome(job):
    end = worker_pb2.FinishOperationRequest(**job.proof)
    try:
        end.response.Pack(await job.work)
    except asyncio.CancelledError:
        if job.why == "CANCEL_REQUESTED":
            end.failure.error.code, end.failure.error.message = code_pb2.CANCELLED, "stopped"
        else:
            end.release.SetInParent()
    except Exception as error:
        again = isinstance(error, Retryable)
        end.failure.error.code = code_pb2.UNAVAILABLE if again else code_pb2.INTERNAL
        end.failure.error.message, end.failure.retryable = str(error), again
    if job.report.HasField("metadata"):
        end.metadata.CopyFrom(job.report.metadata)  # the last word of it
    return end


async def tries(call, request, deadline, enough):
    """Calls until there is an answer, or it is enough."""
    waits = pauses()
    while True:
        try:
            return await call(request, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            if error.code() not in AGAIN or too_large(error):
                raise
            logging.warning("%s; trying again", error.details())
        await asyncio.sleep(next(waits))
        if enough():
            return None


def pauses():
    """Seconds before each further try: longer and longer, and not in step with
    the other workers of a server that comes back."""
    pause = 0.1
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(2 * pause, 5)


def too_large(error):
    """What is too large stays so. What is full may have room later."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return error.code() == grpc.StatusCode.OUT_OF_RANGE or b"TOO_LARGE" in details


def seconds(duration):
    return duration.ToNanoseconds() / 1e9
