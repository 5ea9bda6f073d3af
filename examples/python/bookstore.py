"""A service with a slow method, which it executes itself: ExportBooks creates
an operation, answers with it, and writes the file while clients follow.

    LONGRUNNING_WORKERS=127.0.0.1:8471 python bookstore.py DIRECTORY
"""

import asyncio
import csv
import logging
import os
import pathlib
import signal
import socket
import sys
import threading

import bookstore_pb2
import bookstore_pb2_grpc
import grpc
from longrunning.v1 import worker_pb2

import leases

ADDRESS = os.environ.get("LONGRUNNING_WORKERS", "127.0.0.1:8471")
LISTEN = os.environ.get("BOOKSTORE_LISTEN", "127.0.0.1:8480")
STEP = 1000  # rows between two looks at whether to stop: about a millisecond


def write_books(path, rows, job, stop):
    """In a thread of its own, because it never lets the event loop run."""
    part = path.with_suffix(".part")
    try:
        with open(part, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "title", "price"])
            for first in range(0, rows, STEP):
                if stop.is_set():
                    return
                last = min(first + STEP, rows)
                table.writerows([n, f"Book {n}", f"{n % 9000 / 100:.2f}"] for n in range(first, last))
                now = bookstore_pb2.ExportBooksMetadata(progress_percent=100 * last // rows, rows=last)
                # Hands it over to the event loop, which sends it with the next heartbeat.
                job.loop.call_soon_threadsafe(job.report.metadata.Pack, now)
        part.rename(path)  # no reader ever sees half a file
    finally:
        part.unlink(missing_ok=True)


class Bookstore(bookstore_pb2_grpc.BookstoreServicer):
    def __init__(self, keeper, directory):
        self.keeper, self.directory, self.tasks = keeper, directory, set()

    async def ExportBooks(self, request, context):
        if request.rows < 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "rows: at least 1")
        asked = worker_pb2.CreateOperationRequest(
            # It makes a second try after a lost answer safe; ours as the client's.
            request_id=request.request_id or os.urandom(16).hex(),
            method="bookstore.v1.Bookstore/ExportBooks",
            labels={"rows": str(request.rows)},
            self_executed={"worker_id": self.keeper.id},
        )
        asked.metadata.Pack(bookstore_pb2.ExportBooksMetadata())
        asked.lease_duration.FromSeconds(10)
        try:
            created = await leases.tries(self.keeper.stub.CreateOperation, asked, leases.CALL, lambda: False)
        except grpc.aio.AioRpcError as error:
            # With its trailers, which say why: REQUEST_ID_REUSED, for one.
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
        lease = created.lease
        # The lease of a request that came before is held by us; its work runs.
        if lease.name and lease.lease_token not in self.keeper.jobs:
            export = self.keeper.execute(lease, lambda job: self.export(job, request.rows))
            self.tasks.add(task := asyncio.create_task(export))
            task.add_done_callback(self.tasks.discard)
            await asyncio.sleep(0)  # it begins, so that no other call begins it too
        return created.operation

    async def export(self, job, rows):
        path = self.directory / f"{job.lease.name.split('/')[-1]}.csv"
        stop = threading.Event()
        thread = job.loop.run_in_executor(None, write_books, path, rows, job, stop)
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([thread])  # CANCELLED is said when it is true
            logging.info("%s stopped", job.lease.name)
            raise
        return bookstore_pb2.ExportBooksResponse(path=str(path), rows=rows)


async def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ended = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, ended.set)
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        keeper = leases.Keeper(channel, f"{socket.gethostname()}/{os.getpid()}")
        server = grpc.aio.server()
        bookstore = Bookstore(keeper, pathlib.Path(sys.argv[1]).resolve())
        bookstore_pb2_grpc.add_BookstoreServicer_to_server(bookstore, server)
        port = server.add_insecure_port(LISTEN)
        await server.start()
        logging.info("listening bookstore=%s:%d", LISTEN.rsplit(":", 1)[0], port)
        kept = asyncio.create_task(keeper.run())
        await ended.wait()
        await server.stop(5)
        for job in keeper.jobs.values():
            job.stop("released")  # ends it as WORKER_LOST, because nobody else can do it
        await keeper.until(lambda: not keeper.jobs)
        kept.cancel()


if __name__ == "__main__":
    asyncio.run(main())
