"""A service with a slow method that it executes itself: ExportBooks creates an
operation, returns it, and writes the file in the background.

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
ROWS_PER_CHECK = 1000  # rows between two checks for cancellation, about a millisecond


def write_books(path, rows, job, stop):
    """Writes the file. Blocks, so it must run in its own thread."""
    part = path.with_suffix(".part")
    try:
        with open(part, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "title", "price"])
            for first in range(0, rows, ROWS_PER_CHECK):
                if stop.is_set():
                    return
                last = min(first + ROWS_PER_CHECK, rows)
                table.writerows([n, f"Book {n}", f"{n % 9000 / 100:.2f}"] for n in range(first, last))
                metadata = bookstore_pb2.ExportBooksMetadata(progress_percent=100 * last // rows, rows=last)
                # Only the event loop may change the report; the next heartbeat sends it.
                job.loop.call_soon_threadsafe(job.report.metadata.Pack, metadata)
        part.rename(path)  # only when complete, so that no reader sees a partial file
    finally:
        part.unlink(missing_ok=True)


class Bookstore(bookstore_pb2_grpc.BookstoreServicer):
    def __init__(self, manager, directory):
        self.manager, self.directory, self.tasks = manager, directory, set()

    async def ExportBooks(self, request, context):
        if request.rows < 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "rows: must be at least 1")
        create = worker_pb2.CreateOperationRequest(
            # Makes retries of this call and of the client's call idempotent.
            request_id=request.request_id or os.urandom(16).hex(),
            method="bookstore.v1.Bookstore/ExportBooks",
            labels={"rows": str(request.rows)},
            self_executed={"worker_id": self.manager.id},
        )
        create.metadata.Pack(bookstore_pb2.ExportBooksMetadata())
        create.lease_duration.FromSeconds(10)
        try:
            call = self.manager.stub.CreateOperation
            created = await leases.retry(call, create, leases.CALL_TIMEOUT, lambda: False)
        except grpc.aio.AioRpcError as error:
            # Passes on the trailers, which hold details such as REQUEST_ID_REUSED.
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
        lease = created.lease
        # A repeated request returns the lease of a job that is already running.
        if lease.name and lease.lease_token not in self.manager.jobs:
            export = self.manager.execute(lease, lambda job: self.export(job, request.rows))
            self.tasks.add(task := asyncio.create_task(export))
            task.add_done_callback(self.tasks.discard)
            await asyncio.sleep(0)  # lets it start, so that a concurrent call does not start it too
        return created.operation

    async def export(self, job, rows):
        path = self.directory / f"{job.lease.name.split('/')[-1]}.csv"
        stop = threading.Event()
        thread = job.loop.run_in_executor(None, write_books, path, rows, job, stop)
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([thread])  # report CANCELLED only when the thread has stopped
            logging.info("%s stopped", job.lease.name)
            raise
        return bookstore_pb2.ExportBooksResponse(path=str(path), rows=rows)


async def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stop_requested = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop_requested.set)
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        manager = leases.LeaseManager(channel, f"{socket.gethostname()}/{os.getpid()}")
        server = grpc.aio.server()
        bookstore = Bookstore(manager, pathlib.Path(sys.argv[1]).resolve())
        bookstore_pb2_grpc.add_BookstoreServicer_to_server(bookstore, server)
        port = server.add_insecure_port(LISTEN)
        await server.start()
        logging.info("listening bookstore=%s:%d", LISTEN.rsplit(":", 1)[0], port)
        maintenance = asyncio.create_task(manager.run())
        await stop_requested.wait()
        await server.stop(5)
        for job in manager.jobs.values():
            job.stop("released")  # a self-executed operation then fails with WORKER_LOST
        await manager.wait_until(lambda: not manager.jobs)
        maintenance.cancel()


if __name__ == "__main__":
    asyncio.run(main())
