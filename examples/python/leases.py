"""Works under leases: keeps them, obeys the server, and says how the work ended.

The part that worker.py and bookstore.py share, and the one to copy: it is where
the rules of longrunning/v1/worker.proto are. Python 3.11.
"""

import asyncio
import contextlib
import logging

import grpc
from google.rpc import code_pb2
from longrunning.v1 import worker_pb2, worker_pb2_grpc

BEAT = 0.25  # seconds: how old the progress that clients see may be
PAUSE, CALL = 0.5, 5.0  # seconds before another try; the deadline of a call
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
Directive = worker_pb2.Directive


class Retryable(Exception):
    """Another attempt may succeed."""


class Job:
    """A lease, the work under it, and what the next heartbeat tells about it."""

    def __init__(self, lease, work):
        self.lease, self.loop, self.why = lease, asyncio.get_running_loop(), None
        self.proof = {"name": lease.name, "lease_token": lease.lease_token}
        self.report = worker_pb2.LeaseReport(**self.proof)
        self.over = None
        self.renew(self.loop.time(), lease.lease_remaining)
        self.work = self.loop.create_task(work(self))

    def renew(self, since, remaining):
        """Not renewed in time, the lease is lost; nobody needs to say so."""
        if self.over:
            self.over.cancel()
        self.over = self.loop.call_at(since + seconds(remaining), self.stop, "LEASE_LOST")

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
            jobs, since = list(self.jobs.values()), asyncio.get_running_loop().time()
            request = worker_pb2.HeartbeatRequest(worker_id=self.id, draining=self.draining)
            request.reports.extend(job.report for job in jobs)
            answer = await self.stub.Heartbeat(request, timeout=CALL)
        for job, directive in zip(jobs, answer.directives):
            if directive.kind != Directive.LEASE_LOST and job.lease.lease_token in self.jobs:
                job.renew(since, directive.lease_remaining)
            self.obey(directive)
        return seconds(answer.next_heartbeat)

    async def heartbeats(self):
        pause = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hurry.wait(), pause)
            self.hurry.clear()
            try:
                latest = await self.beat()
                pause = min(BEAT, latest) if self.jobs or self.draining else latest
            except grpc.aio.AioRpcError as error:
                logging.warning("no heartbeat: %s", error.details())
                pause = PAUSE

    async def directives(self):
        """Only a hint, but a quick one. What it misses a heartbeat tells."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = worker_pb2.WatchDirectivesRequest(worker_id=self.id)
                async for directive in self.stub.WatchDirectives(request):
                    if not directive.name:
                        self.hurry.set()  # it has opened; what came before is not on it
                    self.obey(directive)
            await asyncio.sleep(PAUSE)

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
    while True:
        try:
            return await call(request, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            if error.code() not in AGAIN:
                raise
            logging.warning("%s; trying again", error.details())
        await asyncio.sleep(PAUSE)
        if enough():
            return None


def seconds(duration):
    return duration.ToNanoseconds() / 1e9
