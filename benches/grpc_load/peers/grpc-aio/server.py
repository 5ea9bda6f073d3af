"""A straightforward google.longrunning.Operations in Python: messages in a dict,
served by grpc.aio with default settings.

`server.py STORED` prints `listening ADDRESS`. GetOperation of `waiters` has the number
of open waits as its name; DeleteOperation does nothing and so is the empty unary.
"""

import asyncio
import itertools
import sys

import grpc
from google.longrunning import operations_pb2 as pb
from google.longrunning import operations_pb2_grpc as pb_grpc
from google.protobuf import empty_pb2


class Operations(pb_grpc.OperationsServicer):
    def __init__(self, stored):
        self.operations = {operation.name: operation for operation in stored.operations}
        self.finished = {name: asyncio.Event() for name in self.operations}
        self.waiters = 0

    async def find(self, name, context):
        operation = self.operations.get(name)
        if operation is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, name)
        return operation

    async def GetOperation(self, request, context):
        if request.name == "waiters":
            return pb.Operation(name=str(self.waiters))
        return await self.find(request.name, context)

    async def WaitOperation(self, request, context):
        operation = await self.find(request.name, context)
        if not operation.done:
            self.waiters += 1
            try:
                await self.finished[request.name].wait()
            finally:
                self.waiters -= 1
        return operation

    async def CancelOperation(self, request, context):
        operation = await self.find(request.name, context)
        operation.done = True
        operation.error.code = 1
        operation.error.message = "cancelled"
        self.finished[request.name].set()
        return empty_pb2.Empty()

    async def ListOperations(self, request, context):
        newest = itertools.islice(reversed(self.operations.values()), request.page_size)
        return pb.ListOperationsResponse(operations=newest)

    async def DeleteOperation(self, request, context):
        return empty_pb2.Empty()


async def main():
    with open(sys.argv[1], "rb") as file:
        stored = pb.ListOperationsResponse.FromString(file.read())
    server = grpc.aio.server()
    pb_grpc.add_OperationsServicer_to_server(Operations(stored), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
