//! Many workers drain one queue. Without faults each operation runs exactly once. With
//! workers that are killed at random, each operation has exactly one outcome, none is
//! lost, and no attempt number is used twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use longrunning::{
    Any, Context, Failure, NewOperation, OperationName, Operations, RetryPolicy, State,
    client::Worker,
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Duration, sleep},
};

use crate::support::{
    GrpcTestServer, expect_response, flaky_channel::FlakyChannel, operations::start_operations,
    string_value,
};

const OPERATION_COUNT: usize = 1000;
/// Time limit for one operation.
const WAIT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Attempts that have started, by operation name.
type StartedAttempts = BTreeMap<String, Vec<u32>>;

async fn create_many(
    operations: &Operations,
    count: usize,
    new: NewOperation,
) -> Vec<OperationName> {
    let mut names = Vec::new();
    for _ in 0..count {
        let created = operations.create(new.clone()).await.unwrap();
        names.push(created.operation.name_owned());
    }
    names
}

// Through sockets.
// Rules: CLIENT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_varied_concurrency_run_each_operation_once() {
    let server = GrpcTestServer::start().await;
    let names = create_many(
        &server.operations,
        OPERATION_COUNT,
        NewOperation::queued("q"),
    )
    .await;
    let started = Arc::new(Mutex::new(StartedAttempts::new()));
    let mut workers = Vec::new();
    for concurrency in [1, 2, 7, 30] {
        let started = started.clone();
        let handler = move |context: Context| {
            let mut started = started.lock();
            let attempts = started.entry(context.name().to_owned()).or_default();
            attempts.push(context.attempt());
            async move { Ok::<Any, Failure>(string_value(context.name())) }
        };
        let worker = Worker::new(server.channel().await, &concurrency.to_string()).unwrap();
        let worker = worker.handler("q", concurrency, handler);
        workers.push(tokio::spawn(worker.run(std::future::pending())));
    }
    for name in &names {
        let operation = server.operations.wait(name, WAIT_TIMEOUT).await.unwrap();
        assert_eq!(operation.attempt(), 1);
        assert_eq!(
            expect_response(&operation.to_proto()),
            string_value(name.as_str())
        );
    }
    workers.iter().for_each(JoinHandle::abort);
    let started = started.lock();
    assert_eq!(started.len(), OPERATION_COUNT);
    assert!(started.values().all(|attempts| *attempts == [1]));
}

/// A worker that can be killed as by SIGKILL: afterwards it sends nothing.
struct KillableWorker {
    concurrency: usize,
    is_alive: Arc<AtomicBool>,
    channel: FlakyChannel,
    task: JoinHandle<()>,
}

impl KillableWorker {
    fn start(
        operations: &Operations,
        id: usize,
        concurrency: usize,
        started_sender: &mpsc::UnboundedSender<(String, u32)>,
    ) -> Self {
        let channel = FlakyChannel::new(operations);
        let is_alive = Arc::new(AtomicBool::new(true));
        let handler = {
            let (started_sender, is_alive) = (started_sender.clone(), is_alive.clone());
            move |context: Context| {
                // A killed process starts no attempts.
                if is_alive.load(Ordering::Relaxed) {
                    let started = (context.name().to_owned(), context.attempt());
                    started_sender
                        .send(started)
                        .expect("expected the test to be running");
                }
                async move {
                    // Some attempts run longer than their lease.
                    let name_byte = context.name().bytes().last().unwrap_or_default();
                    sleep(Duration::from_millis(25) * u32::from(name_byte)).await;
                    Ok::<Any, Failure>(string_value(&context.attempt().to_string()))
                }
            }
        };
        let worker = Worker::new(channel.channel(), &id.to_string()).unwrap();
        let worker = worker.handler("q", concurrency, handler);
        let task = tokio::spawn(async { worker.run(std::future::pending()).await.unwrap() });
        Self {
            concurrency,
            is_alive,
            channel,
            task,
        }
    }

    /// Stops the worker and returns its concurrency, for its replacement.
    fn kill(self) -> usize {
        self.is_alive.store(false, Ordering::Relaxed);
        self.channel.disconnect();
        self.task.abort();
        self.concurrency
    }
}

// Rules: CLIENT-11
#[tokio::test(start_paused = true)]
async fn randomly_killed_workers_lose_no_operation_or_attempt() {
    let operations = start_operations().await;
    let new = NewOperation::queued("q")
        .lease_duration(Duration::from_secs(2))
        .retry_policy(RetryPolicy::default().with_max_worker_losses(1000));
    let names = create_many(&operations, OPERATION_COUNT, new).await;
    let (started_sender, mut started_receiver) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for (id, concurrency) in [1, 2, 7, 30].into_iter().enumerate() {
        workers.push(KillableWorker::start(
            &operations,
            id,
            concurrency,
            &started_sender,
        ));
    }
    let waiter = operations.clone();
    let expected = names.clone();
    let mut drained = tokio::spawn(async move {
        for name in &expected {
            assert!(waiter.wait(name, WAIT_TIMEOUT).await.unwrap().is_done());
        }
    });
    let (mut started, mut count, mut seed) = (StartedAttempts::new(), 0_usize, 7_usize);
    loop {
        let (name, attempt) = tokio::select! {
            biased;
            Some(attempt) = started_receiver.recv() => attempt,
            drained = &mut drained => break drained.unwrap(),
        };
        started.entry(name).or_default().push(attempt);
        count += 1;
        if count % 40 == 0 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = (seed >> 33) % workers.len();
            let concurrency = workers.swap_remove(index).kill();
            workers.push(KillableWorker::start(
                &operations,
                count,
                concurrency,
                &started_sender,
            ));
        }
    }
    assert!(
        count > OPERATION_COUNT + OPERATION_COUNT / 20,
        "expected kills to cost attempts, {count} started"
    );
    for name in &names {
        let operation = operations.get_cached(name).unwrap();
        assert_eq!(operation.state(), State::Succeeded);
        check_attempts(&started[name.as_str()], operation.attempt());
        // The outcome is that of the last attempt.
        assert_eq!(
            expect_response(&operation.to_proto()),
            string_value(&operation.attempt().to_string())
        );
    }
}

/// Asserts that no attempt started twice and that the last one completed the operation.
///
/// A worker that is killed between lease and start leaves a gap.
fn check_attempts(started: &[u32], last: u32) {
    let attempts: BTreeSet<u32> = started.iter().copied().collect();
    assert_eq!(attempts.len(), started.len(), "{started:?}");
    assert_eq!(attempts.last(), Some(&last), "{started:?}");
}

#[cfg(feature = "cli")]
mod processes {
    //! The same with worker processes and SIGKILL.

    use std::{path::Path, process::Stdio};

    use longrunning::proto::{
        google::longrunning::WaitOperationRequest,
        longrunning::v1::{CreateOperationRequest, operation_worker_client::OperationWorkerClient},
    };
    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        net::unix::pipe,
        process::Child,
    };
    use tonic::transport::Endpoint;

    use super::{StartedAttempts, check_attempts};
    use crate::support::{
        decode_metadata,
        harness::{max_attempts, proto_seconds, queued_request},
        serve_process::{ServeProcess, longrunning_command},
    };

    const PROCESS_OPERATION_COUNT: usize = 120;

    /// Starts a worker whose command writes operation and attempt to a pipe.
    fn spawn_worker(server: &ServeProcess, concurrency: usize, pipe: &Path) -> Child {
        let script = r#"echo "$LONGRUNNING_OPERATION $LONGRUNNING_ATTEMPT" > "$0""#;
        longrunning_command(&["work", "--queue", "q", "--concurrency"])
            .arg(concurrency.to_string())
            .args([
                "--worker-endpoint",
                &format!("http://{}", server.worker_address),
            ])
            .args(["--", "sh", "-c", script])
            .arg(pipe)
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    // Rules: CLIENT-11
    #[tokio::test]
    async fn killed_worker_processes_lose_no_operation_or_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("started");
        let mkfifo = tokio::process::Command::new("mkfifo").arg(&path).status();
        assert!(mkfifo.await.unwrap().success());
        // Open for writing, too, so that reading does not end between two writers.
        let pipe = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(&path);
        let mut lines = BufReader::new(pipe.unwrap()).lines();

        let server = ServeProcess::serve(&[]).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", server.worker_address)).unwrap();
        let mut creator = OperationWorkerClient::new(endpoint.connect_lazy());
        let mut names = Vec::new();
        for _ in 0..PROCESS_OPERATION_COUNT {
            let request = CreateOperationRequest {
                lease_duration: proto_seconds(1),
                retry_policy: max_attempts(1000),
                ..queued_request("q")
            };
            let created = creator.create_operation(request).await.unwrap();
            names.push(created.into_inner().operation.unwrap().name);
        }
        let mut workers: Vec<_> = [1, 2, 4]
            .into_iter()
            .map(|concurrency| (concurrency, spawn_worker(&server, concurrency, &path)))
            .collect();

        let mut client = server.client().await;
        let expected = names.clone();
        let mut drained = tokio::spawn(async move {
            let mut done = Vec::new();
            for name in expected {
                let request = WaitOperationRequest {
                    name,
                    timeout: proto_seconds(300),
                };
                done.push(client.wait_operation(request).await.unwrap().into_inner());
            }
            done
        });
        let (mut started, mut count, mut seed) = (StartedAttempts::new(), 0_usize, 3_usize);
        let done = loop {
            let line = tokio::select! {
                biased;
                line = lines.next_line() => line.unwrap().expect("expected an open pipe"),
                done = &mut drained => break done.unwrap(),
            };
            let (name, attempt) = line.split_once(' ').unwrap();
            let attempts = started.entry(name.to_owned()).or_default();
            attempts.push(attempt.parse().unwrap());
            count += 1;
            if count % 15 == 0 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let index = (seed >> 33) % workers.len();
                let (concurrency, mut worker) = workers.swap_remove(index);
                // Child::kill sends SIGKILL.
                worker.kill().await.unwrap();
                workers.push((concurrency, spawn_worker(&server, concurrency, &path)));
            }
        };
        for operation in &done {
            assert!(
                operation.done && operation.result.is_some(),
                "{operation:?}"
            );
            let last_attempt = u32::try_from(decode_metadata(operation).attempt).unwrap();
            check_attempts(&started[&operation.name], last_attempt);
        }
        assert_eq!(started.len(), PROCESS_OPERATION_COUNT);
    }
}
