"""Four `longrunning work` processes of different concurrency drain 10 000 operations.

    drain_check.py

Without faults, each operation runs exactly once. With workers that are killed by SIGKILL
at random and replaced, each operation has exactly one outcome, none is lost, and no
attempt number is used twice. Prints one line for each check and exits with 1 if one
failed. tests/clients/run runs it in a venv of requirements.txt.
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

from workers_check import State, Harness, operations_pb2, pack, seconds, worker_pb2

COUNT = int(os.environ.get("OPERATIONS", "10000"))
CONCURRENCIES = (1, 2, 4, 8)
# Records the start of the attempt, runs for a moment and returns the attempt number.
COMMAND = """
printf '%s %s\\n' "$LONGRUNNING_OPERATION" "$LONGRUNNING_ATTEMPT" >> "$ATTEMPTS_FILE"
[ "$1" = quick ] || sleep 0.01
printf 'attempt %s' "$LONGRUNNING_ATTEMPT"
"""


class Pool:
    """The worker processes; each killed one is replaced."""

    def __init__(self, harness, queue, started, pace):
        self.harness, self.queue, self.pace = harness, queue, pace
        self.environment = {**os.environ, "ATTEMPTS_FILE": str(started)}
        self.log = open(harness.scratch / f"{queue}.log", "w")
        self.processes = [self.start(concurrency) for concurrency in CONCURRENCIES]

    def start(self, concurrency):
        endpoint = f"http://{self.harness.server.workers}"
        return concurrency, subprocess.Popen(
            [os.environ["LONGRUNNING_BIN"], "work", "--queue", self.queue, "--concurrency", str(concurrency)]
            + ["--worker-endpoint", endpoint, "--", "sh", "-c", COMMAND, "sh", self.pace],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def kill_one(self, rng):
        at = rng.randrange(len(self.processes))
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


def submit(harness, queue, **options):
    def one(_):
        request = worker_pb2.CreateOperationRequest(**options)
        request.queued.queue = queue
        request.queued.input.CopyFrom(pack(struct_pb2.Struct()))
        return harness.worker.CreateOperation(request).operation.name

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(COUNT)))


def list_all(harness):
    """Returns all operations by name."""
    operations, token = {}, ""
    while True:
        request = operations_pb2.ListOperationsRequest(name="operations", page_size=1000, page_token=token)
        page = harness.server.raw.ListOperations(request)
        operations.update((operation.name, operation) for operation in page.operations)
        token = page.next_page_token
        if not token:
            return operations


def wait_until_done(harness, names, meanwhile, timeout):
    """Waits until all are done; calls `meanwhile` between the waits."""
    deadline = time.monotonic() + timeout
    for name in names:
        while not harness.server.raw.WaitOperation(
            operations_pb2.WaitOperationRequest(name=name, timeout=seconds(0.2))).done:
            meanwhile()
            assert time.monotonic() < deadline, f"{name} is not done after {timeout} s: {harness.get(name)}"
        meanwhile()


def started_attempts(path):
    started = collections.defaultdict(list)
    for line in path.read_text().splitlines():
        name, attempt = line.split(" ")
        started[name].append(int(attempt))
    return started


def outcome(operation):
    """Returns the last attempt of a succeeded operation."""
    text, metadata = wrappers_pb2.StringValue(), State()
    assert operation.done and operation.response.Unpack(text), operation
    assert operation.metadata.Unpack(metadata) and metadata.state == State.SUCCEEDED, operation
    assert text.value == f"attempt {metadata.attempt}", operation
    return metadata.attempt


def drain_without_faults(harness):
    started = harness.scratch / "without-faults"
    names = submit(harness, "reliable")
    start = time.monotonic()
    with Pool(harness, "reliable", started, "quick"):
        wait_until_done(harness, names, lambda: None, 300)
        elapsed = time.monotonic() - start
    ended = list_all(harness)
    assert {outcome(ended[name]) for name in names} == {1}
    started = started_attempts(started)
    assert started.keys() == set(names) and all(attempts == [1] for attempts in started.values())
    return f"{COUNT} in {elapsed:.1f} s"


def drain_with_killed_workers(harness):
    started = harness.scratch / "with-killed-workers"
    options = {"lease_duration": seconds(1)}
    options["retry_policy"] = {"max_attempts": 1000, "initial_backoff": seconds(0.01), "max_backoff": seconds(0.1)}
    names = submit(harness, "faulty", **options)
    seed = random.randrange(1 << 32)
    rng, kills, next_kill = random.Random(seed), 0, 0.0
    start = time.monotonic()

    def kill_at_random_intervals():
        nonlocal kills, next_kill
        if next_kill <= time.monotonic():
            pool.kill_one(rng)
            kills += 1
            next_kill = time.monotonic() + rng.uniform(0.05, 0.6)

    with Pool(harness, "faulty", started, "slow") as pool:
        wait_until_done(harness, names, kill_at_random_intervals, 600)
        elapsed = time.monotonic() - start
    before = list_all(harness)
    # Commands of killed workers run to their end and must not change an outcome.
    time.sleep(1.5)
    ended = list_all(harness)
    assert {name: before[name] for name in names} == {name: ended[name] for name in names}, "an outcome changed"
    last = {name: outcome(ended[name]) for name in names}
    started = started_attempts(started)
    assert started.keys() == set(names), "expected every operation to have started"
    for name, attempts in started.items():
        assert len(set(attempts)) == len(attempts), f"seed {seed}: {name} began {attempts}"
        assert last[name] == max(attempts), f"seed {seed}: {name} ended with {last[name]}, began {attempts}"
    retried = sum(1 for name in names if last[name] > 1)
    assert retried, "expected kills to cause retries"
    return f"{COUNT} in {elapsed:.1f} s, {kills} workers killed, {retried} operations retried, at most {max(last.values())} attempts"


def main():
    checks = [
        (f"four `work` processes drain {COUNT} operations, each exactly once", drain_without_faults),
        ("with workers killed by SIGKILL, each operation has one outcome and unique attempts", drain_with_killed_workers),
    ]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="longrunning-drain-") as scratch:
        harness = Harness(scratch)
        try:
            for claim, function in checks:
                try:
                    print(f"  ok      {claim}: {function(harness)}", flush=True)
                except Exception:
                    failed += 1
                    print(f"  FAILED  {claim}\n{traceback.format_exc()}", flush=True)
                    for log in pathlib.Path(scratch).glob("*.log"):
                        print("".join(log.read_text().splitlines(keepends=True)[-5:]))
        finally:
            harness.server.process.kill()
            harness.server.process.wait()
    print(f"\ndrain checks: {len(checks) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
