"""A worker: leases operations from a queue, executes them and reports their results.

    pip install -r requirements.txt && ./generate
    LONGRUNNING_WORKERS=127.0.0.1:8471 QUEUE=copy PYTHONPATH=gen python worker.py

Replace `copy_rows` with your own work. SIGTERM drains the worker.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket

import grpc
from google.protobuf import struct_pb2
from longrunning.v1 import worker_pb2

import leases

ADDRESS = os.environ.get("LONGRUNNING_WORKERS", "127.0.0.1:8471")
QUEUE = os.environ.get("QUEUE", "copy")
CONCURRENCY = 4
POLL_TIMEOUT = 30  # seconds
DRAIN_TIMEOUT = float(os.environ.get("DRAIN", "10").removesuffix("s"))


async def copy_rows(job):
    """The slow work, which resumes from the checkpoint of an earlier attempt. Pass
    `job.lease.attempt` to other systems as a fencing token: the higher number wins."""
    settings, checkpoint, result = (struct_pb2.Struct() for _ in range(3))
    job.lease.input.Unpack(settings)
    job.lease.checkpoint.Unpack(checkpoint)
    rows, first = int(settings["rows"]), int(checkpoint["next"]) if "next" in checkpoint else 0
    logging.info("%s begins attempt %d at row %d", job.lease.name, job.lease.attempt, first)
    for row in range(first, rows):
        await asyncio.sleep(0.02)  # raises CancelledError when the job is stopped
        if job.lease.attempt == 1 and "breaks_at" in settings and row == settings["breaks_at"]:
            raise leases.RetryableError("source disconnected")
        # The next heartbeat sends this report.
        progress = job.report.progress
        progress.done_units, progress.total_units, progress.unit = row + 1, rows, "rows"
        checkpoint["next"] = row + 1
        job.report.checkpoint.Pack(checkpoint)
    result.update({"rows": rows, "first": first, "attempt": job.lease.attempt})
    return result


async def lease_operations(manager, max_leases):
    """Waits for operations. Does not cancel the call on shutdown, because its response
    may be on its way; a draining heartbeat makes the server end it."""
    request = worker_pb2.LeaseOperationsRequest(queues=[QUEUE], worker_id=manager.id, max_leases=max_leases)
    request.wait_timeout.FromSeconds(POLL_TIMEOUT)
    request.confirm_within.FromSeconds(leases.CONFIRM_TIMEOUT)
    call, timeout = manager.stub.LeaseOperations, POLL_TIMEOUT + leases.CALL_TIMEOUT
    loop = asyncio.get_running_loop()
    called = loop.time()
    response = await leases.retry(call, request, timeout, lambda: manager.draining)
    leased = response.leases if response else []
    if not leased and not manager.draining and loop.time() - called < 1:
        await asyncio.sleep(random.uniform(0.5, 1))  # the server could not hold the call
    return leased


async def run_worker(manager):
    async with asyncio.TaskGroup() as tasks:
        maintenance = tasks.create_task(manager.run())
        while not manager.draining:
            if free_slots := CONCURRENCY - len(manager.jobs):
                for lease in await lease_operations(manager, free_slots):
                    tasks.create_task(manager.execute(lease, copy_rows, leases.CONFIRM_TIMEOUT))
                await asyncio.sleep(0)  # lets the new jobs start, so that they are counted
            else:
                await manager.wait_until(lambda: manager.draining or len(manager.jobs) < CONCURRENCY)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(manager.wait_until(lambda: not manager.jobs), DRAIN_TIMEOUT)
        for job in manager.jobs.values():
            job.stop("released")  # returns the operation to the queue
        await manager.wait_until(lambda: not manager.jobs)
        maintenance.cancel()


async def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        manager = leases.LeaseManager(channel, f"{socket.gethostname()}/{os.getpid()}")

        def drain():
            manager.draining = True
            manager.wakeup.set()
            manager.changed.set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, drain)
        await run_worker(manager)


if __name__ == "__main__":
    asyncio.run(main())
