"""10 000 queued operations, drained by four `longrunning work` of different concurrency.

    drain_check.py

Once in peace: each ran exactly once. Once with workers killed by SIGKILL at
random and replaced: each ends with exactly one outcome, none is lost, and every
attempt has a number of its own. One line for each check; exit code 1 if one
failed. Run by tests/clients/run in a venv of requirements.txt.
"""

import collections
import concurrent.futures
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from google.protobuf import struct_pb2, wrappers_pb2

from workers_check import State, World, operations_pb2, packed, seconds, worker_pb2

COUNT = int(os.environ.get("OPERATIONS", "10000"))
CONCURRENCIES = (1, 2, 4, 8)
# Says that an attempt began, works a little, answers with the attempt.
COMMAND = """
printf '%s %s\\n' "$LONGRUNNING_OPERATION" "$LONGRUNNING_ATTEMPT" >> "$BEGUN"
[ "$1" = quick ] || sleep 0.01
printf 'attempt %s' "$LONGRUNNING_ATTEMPT"
"""


class Pool:
    """The four processes; each that is killed gets a successor."""

    def __init__(self, world, queue, begun, pace):
        self.world, self.queue, self.pace = world, queue, pace
        self.environment = {**os.environ, "BEGUN": str(begun)}
        self.log = open(world.scratch / f"{queue}.log", "w")
        self.processes = [self.start(concurrency) for concurrency in CONCURRENCIES]

    def start(self, concurrency):
        endpoint = f"http://{self.world.server.workers}"
        return concurrency, subprocess.Popen(
            [os.environ["LONGRUNNING_BIN"], "work", "--queue", self.queue, "--concurrency", str(concurrency)]
            + ["--worker-endpoint", endpoint, "--", "sh", "-c", COMMAND, "sh", self.pace],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def kill_one(self, chance):
        at = chance.randrange(len(self.processes))
        concurrency, process = self.processes[at]
        process.kill()
        process.wait()
        self.processes[at] = self.start(concurrency)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, process in self.processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for _, process in self.processes]
        self.log.close()
        assert not any(codes), f"exit codes {codes}"


def submit(world, queue, **terms):
    def one(_):
        asked = worker_pb2.CreateOperationRequest(**terms)
        asked.queued.queue = queue
        asked.queued.input.CopyFrom(packed(struct_pb2.Struct()))
        return world.worker.CreateOperation(asked).operation.name

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(COUNT)))


def every(world):
    """All operations by name, by paging through them."""
    found, token = {}, ""
    while True:
        request = operations_pb2.ListOperationsRequest(name="operations", page_size=1000, page_token=token)
        page = world.server.raw.ListOperations(request)
        found.update((operation.name, operation) for operation in page.operations)
        token = page.next_page_token
        if not token:
            return found


def until_done(world, names, meanwhile, within):
    """Waits for each in turn; `meanwhile` is called between the waits."""
    last = time.monotonic() + within
    for name in names:
        while not world.server.raw.WaitOperation(
            operations_pb2.WaitOperationRequest(name=name, timeout=seconds(0.2))).done:
            meanwhile()
            assert time.monotonic() < last, f"{name} is not done within {within} s: {world.get(name)}"
        meanwhile()


def begun_of(path):
    begun = collections.defaultdict(list)
    for line in path.read_text().splitlines():
        name, attempt = line.split(" ")
        begun[name].append(int(attempt))
    return begun


def outcome(operation):
    """The attempt that an operation ended with, by its outcome and its metadata."""
    text, metadata = wrappers_pb2.StringValue(), State()
    assert operation.done and operation.response.Unpack(text), operation
    assert operation.metadata.Unpack(metadata) and metadata.state == State.SUCCEEDED, operation
    assert text.value == f"attempt {metadata.attempt}", operation
    return metadata.attempt


def in_peace(world):
    begun = world.scratch / "in-peace"
    names = submit(world, "peace")
    began = time.monotonic()
    with Pool(world, "peace", begun, "quick"):
        until_done(world, names, lambda: None, 300)
        took = time.monotonic() - began
    ended = every(world)
    assert {outcome(ended[name]) for name in names} == {1}
    begun = begun_of(begun)
    assert begun.keys() == set(names) and all(attempts == [1] for attempts in begun.values())
    return f"{COUNT} in {took:.1f} s"


def with_faults(world):
    begun = world.scratch / "with-faults"
    terms = {"lease_duration": seconds(1)}
    terms["retry_policy"] = {"max_attempts": 1000, "initial_backoff": seconds(0.01), "max_backoff": seconds(0.1)}
    names = submit(world, "faults", **terms)
    seed = random.randrange(1 << 32)
    chance, kills, next_kill = random.Random(seed), 0, 0.0
    began = time.monotonic()

    def kill_now_and_then():
        nonlocal kills, next_kill
        if next_kill <= time.monotonic():
            pool.kill_one(chance)
            kills += 1
            next_kill = time.monotonic() + chance.uniform(0.05, 0.6)

    with Pool(world, "faults", begun, "slow") as pool:
        until_done(world, names, kill_now_and_then, 600)
        took = time.monotonic() - began
    before = every(world)
    # What a killed worker left running ends by itself, and says so to nobody.
    time.sleep(1.5)
    ended = every(world)
    assert {name: before[name] for name in names} == {name: ended[name] for name in names}, "an outcome changed"
    last = {name: outcome(ended[name]) for name in names}
    begun = begun_of(begun)
    assert begun.keys() == set(names), "an operation has an outcome, but nobody worked on it"
    for name, attempts in begun.items():
        assert len(set(attempts)) == len(attempts), f"seed {seed}: {name} began {attempts}"
        assert last[name] == max(attempts), f"seed {seed}: {name} ended with {last[name]}, began {attempts}"
    again = sum(1 for name in names if 1 < last[name])
    assert again, "no kill hit anything"
    return f"{COUNT} in {took:.1f} s, {kills} workers killed, {again} operations tried again, at most {max(last.values())} times"


def main():
    checks = [
        (f"four `work` processes drain {COUNT} operations, each ran exactly once", in_peace),
        ("with workers killed by -9 each operation has one outcome, none is lost, attempts are right", with_faults),
    ]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-drain-") as scratch:
        world = World(scratch)
        try:
            for claim, function in checks:
                try:
                    print(f"  ok      {claim}: {function(world)}", flush=True)
                except Exception:
                    failed += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
                    for log in pathlib.Path(scratch).glob("*.log"):
                        print("".join(log.read_text().splitlines(keepends=True)[-5:]))
        finally:
            world.server.process.kill()
            world.server.process.wait()
    print(f"\ndrain checks: {len(checks) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
