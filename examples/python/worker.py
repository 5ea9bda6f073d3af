"""A worker: takes operations from a queue, works on them, says how it ended.

    LONGRUNNING_WORKERS=127.0.0.1:8471 QUEUE=copy python worker.py

Put work of your own in the place of `copy_rows`. SIGTERM drains it.
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
AT_ONCE = 4
POLL = 30  # seconds
DRAIN = float(os.environ.get("DRAIN", "10").removesuffix("s"))


async def copy_rows(job):
    """Slow work, which goes on where the attempt before it left off. Pass
    `job.lease.attempt` to systems that it writes to: the higher number wins."""
    asked, kept, copied = (struct_pb2.Struct() for _ in range(3))
    job.lease.input.Unpack(asked)
    job.lease.checkpoint.Unpack(kept)
    rows, first = int(asked["rows"]), int(kept["next"]) if "next" in kept else 0
    logging.info("%s begins attempt %d at row %d", job.lease.name, job.lease.attempt, first)
    for row in range(first, rows):
        await asyncio.sleep(0.02)  # to be stopped is to get CancelledError from an await
        if job.lease.attempt == 1 and "breaks_at" in asked and row == asked["breaks_at"]:
            raise leases.Retryable("the source went away")
        # Not sent at once: the next heartbeat tells it.
        progress = job.report.progress
        progress.done_units, progress.total_units, progress.unit = row + 1, rows, "rows"
        kept["next"] = row + 1
        job.report.checkpoint.Pack(kept)
    copied.update({"rows": rows, "first": first, "attempt": job.lease.attempt})
    return copied


async def take(keeper, most):
    """Waits for operations. It never gives up the call, because the leases of a
    lost answer are nobody's for a while; a heartbeat of a draining worker ends it."""
    request = worker_pb2.LeaseOperationsRequest(queues=[QUEUE], worker_id=keeper.id, max_leases=most)
    request.wait_timeout.FromSeconds(POLL)
    call, deadline = keeper.stub.LeaseOperations, POLL + leases.CALL
    loop = asyncio.get_running_loop()
    asked = loop.time()
    answer = await leases.tries(call, request, deadline, lambda: keeper.draining)
    taken = answer.leases if answer else []
    if not taken and not keeper.draining and loop.time() - asked < 1:
        await asyncio.sleep(random.uniform(0.5, 1))  # a server that lets nobody wait
    return taken


async def serve(keeper):
    async with asyncio.TaskGroup() as tasks:
        kept = tasks.create_task(keeper.run())
        while not keeper.draining:
            if most := AT_ONCE - len(keeper.jobs):
                for lease in await take(keeper, most):
                    tasks.create_task(keeper.execute(lease, copy_rows))
                await asyncio.sleep(0)  # the new jobs begin, and count
            else:
                await keeper.until(lambda: keeper.draining or len(keeper.jobs) < AT_ONCE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(keeper.until(lambda: not keeper.jobs), DRAIN)
        for job in keeper.jobs.values():
            job.stop("released")  # back to the queue, for another worker
        await keeper.until(lambda: not keeper.jobs)
        kept.cancel()


async def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        keeper = leases.Keeper(channel, f"{socket.gethostname()}/{os.getpid()}")

        def drain():
            keeper.draining = True
            keeper.hurry.set()
            keeper.change.set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, drain)
        await serve(keeper)


if __name__ == "__main__":
    asyncio.run(main())
