//! Many workers and one queue: without faults each operation runs exactly once;
//! with workers that are killed at random each still has exactly one outcome,
//! none is lost, and every attempt that began has a number of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use longrunning::{
    Any, Context, Failure, NewOperation, OperationName, Operations, RetryPolicy, State,
    remote::Worker,
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Duration, sleep},
};

use crate::support::{Server, line::Line, response, text};

/// So many operations are drained.
const MANY: usize = 1000;
/// So long any of them may take before the test has failed.
const GUARD: Duration = Duration::from_secs(3600);

/// The attempts that began, by operation.
type Begun = BTreeMap<String, Vec<u32>>;

async fn queue(operations: &Operations, count: usize, new: NewOperation) -> Vec<OperationName> {
    let mut names = Vec::new();
    for _ in 0..count {
        let created = operations.create(new.clone()).await.unwrap();
        names.push(created.operation.owned_name());
    }
    names
}

// BEHAVIOUR §5, through sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_different_concurrency_drain_a_queue_and_run_each_operation_once() {
    let server = Server::start().await;
    let names = queue(&server.operations, MANY, NewOperation::queued("q")).await;
    let begun = Arc::new(Mutex::new(Begun::new()));
    let mut workers = Vec::new();
    for concurrency in [1, 2, 7, 30] {
        let begun = begun.clone();
        let handler = move |context: Context| {
            let mut begun = begun.lock();
            let attempts = begun.entry(context.name().to_owned()).or_default();
            attempts.push(context.attempt());
            async move { Ok::<Any, Failure>(text(context.name())) }
        };
        let worker = Worker::new(server.channel().await, &concurrency.to_string()).unwrap();
        let worker = worker.handler("q", concurrency, handler);
        workers.push(tokio::spawn(worker.run(std::future::pending())));
    }
    for name in &names {
        let last = server.operations.wait(name, GUARD).await.unwrap();
        assert_eq!(last.attempt(), 1);
        assert_eq!(response(&last.to_proto()), text(name.as_str()));
    }
    workers.iter().for_each(JoinHandle::abort);
    let begun = begun.lock();
    assert_eq!(begun.len(), MANY);
    assert!(begun.values().all(|attempts| *attempts == [1]));
}

/// A worker that can be killed, as -9 does it: nothing it does afterwards
/// reaches anybody.
struct Victim {
    concurrency: usize,
    alive: Arc<AtomicBool>,
    line: Line,
    task: JoinHandle<()>,
}

impl Victim {
    fn start(
        operations: &Operations,
        id: usize,
        concurrency: usize,
        begun: &mpsc::UnboundedSender<(String, u32)>,
    ) -> Self {
        let line = Line::to(operations);
        let alive = Arc::new(AtomicBool::new(true));
        let handler = {
            let (begun, alive) = (begun.clone(), alive.clone());
            move |context: Context| {
                // A process that was killed begins nothing.
                if alive.load(Ordering::Relaxed) {
                    let began = (context.name().to_owned(), context.attempt());
                    begun.send(began).expect("the test counts");
                }
                async move {
                    // Some go on for longer than their lease.
                    let length = context.name().bytes().last().unwrap_or_default();
                    sleep(Duration::from_millis(25) * u32::from(length)).await;
                    Ok::<Any, Failure>(text(&context.attempt().to_string()))
                }
            }
        };
        let worker = Worker::new(line.channel(), &id.to_string()).unwrap();
        let worker = worker.handler("q", concurrency, handler);
        let task = tokio::spawn(async { worker.run(std::future::pending()).await.unwrap() });
        Self {
            concurrency,
            alive,
            line,
            task,
        }
    }

    fn kill(self) -> usize {
        self.alive.store(false, Ordering::Relaxed);
        self.line.cut();
        self.task.abort();
        self.concurrency
    }
}

// BEHAVIOUR §§4, 5
#[tokio::test(start_paused = true)]
async fn workers_that_are_killed_at_random_lose_no_operation_and_no_attempt() {
    let operations = crate::support::operations().start().await.unwrap();
    let new = NewOperation::queued("q")
        .lease_duration(Duration::from_secs(2))
        .retry(RetryPolicy::attempts(1000));
    let names = queue(&operations, MANY, new).await;
    let (begin, mut begins) = mpsc::unbounded_channel();
    let mut victims = Vec::new();
    for (id, concurrency) in [1, 2, 7, 30].into_iter().enumerate() {
        victims.push(Victim::start(&operations, id, concurrency, &begin));
    }
    let all = operations.clone();
    let wanted = names.clone();
    let mut drained = tokio::spawn(async move {
        for name in &wanted {
            assert!(all.wait(name, GUARD).await.unwrap().is_done());
        }
    });
    let (mut begun, mut count, mut seed) = (Begun::new(), 0_usize, 7_usize);
    loop {
        let (name, attempt) = tokio::select! {
            biased;
            Some(began) = begins.recv() => began,
            drained = &mut drained => break drained.unwrap(),
        };
        begun.entry(name).or_default().push(attempt);
        count += 1;
        if count % 40 == 0 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) % victims.len();
            let concurrency = victims.swap_remove(at).kill();
            victims.push(Victim::start(&operations, count, concurrency, &begin));
        }
    }
    assert!(
        MANY + MANY / 20 < count,
        "kills cost attempts: {count} began"
    );
    for name in &names {
        let last = operations.get(name).unwrap();
        assert_eq!(last.state(), State::Succeeded);
        check(&begun[name.as_str()], last.attempt());
        // The outcome is that of the last attempt, and of no other.
        assert_eq!(
            response(&last.to_proto()),
            text(&last.attempt().to_string())
        );
    }
}

/// No attempt comes twice, and the last one that began is the one that ended the
/// operation. One that was leased by a worker that died before it could begin
/// leaves a gap.
fn check(begun: &[u32], last: u32) {
    let attempts: BTreeSet<u32> = begun.iter().copied().collect();
    assert_eq!(attempts.len(), begun.len(), "{begun:?}");
    assert_eq!(attempts.last(), Some(&last), "{begun:?}");
}

#[cfg(feature = "cli")]
mod processes {
    //! The same with processes and real signals.

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

    use super::{Begun, check};
    use crate::support::{
        metadata,
        program::{Program, command},
        shop::{attempts, queued, seconds},
    };

    const SOME: usize = 120;

    /// A worker whose command tells through a pipe that it began.
    fn start(program: &Program, concurrency: usize, pipe: &Path) -> Child {
        let script = r#"echo "$LONGRUNNING_OPERATION $LONGRUNNING_ATTEMPT" > "$0""#;
        command(&["work", "--queue", "q", "--concurrency"])
            .arg(concurrency.to_string())
            .args(["--worker-endpoint", &format!("http://{}", program.workers)])
            .args(["--", "sh", "-c", script])
            .arg(pipe)
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[tokio::test]
    async fn processes_that_are_killed_at_random_lose_no_operation_and_no_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("begun");
        let mkfifo = tokio::process::Command::new("mkfifo").arg(&path).status();
        assert!(mkfifo.await.unwrap().success());
        // Open for writing too, so that it does not end between two writers.
        let pipe = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(&path);
        let mut lines = BufReader::new(pipe.unwrap()).lines();

        let program = Program::serve(&[]).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", program.workers)).unwrap();
        let mut creator = OperationWorkerClient::new(endpoint.connect_lazy());
        let mut names = Vec::new();
        for _ in 0..SOME {
            let request = CreateOperationRequest {
                lease_duration: seconds(1),
                retry_policy: attempts(1000),
                ..queued("q")
            };
            let created = creator.create_operation(request).await.unwrap();
            names.push(created.into_inner().operation.unwrap().name);
        }
        let mut workers: Vec<_> = [1, 2, 4]
            .into_iter()
            .map(|concurrency| (concurrency, start(&program, concurrency, &path)))
            .collect();

        let mut client = program.client().await;
        let wanted = names.clone();
        let mut drained = tokio::spawn(async move {
            let mut done = Vec::new();
            for name in wanted {
                let request = WaitOperationRequest {
                    name,
                    timeout: seconds(300),
                };
                done.push(client.wait_operation(request).await.unwrap().into_inner());
            }
            done
        });
        let (mut begun, mut count, mut seed) = (Begun::new(), 0_usize, 3_usize);
        let done = loop {
            let line = tokio::select! {
                biased;
                line = lines.next_line() => line.unwrap().expect("it does not end"),
                done = &mut drained => break done.unwrap(),
            };
            let (name, attempt) = line.split_once(' ').unwrap();
            let attempts = begun.entry(name.to_owned()).or_default();
            attempts.push(attempt.parse().unwrap());
            count += 1;
            if count % 15 == 0 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) % workers.len();
                let (concurrency, mut worker) = workers.swap_remove(at);
                // Child::kill is SIGKILL.
                worker.kill().await.unwrap();
                workers.push((concurrency, start(&program, concurrency, &path)));
            }
        };
        for operation in &done {
            assert!(
                operation.done && operation.result.is_some(),
                "{operation:?}"
            );
            let last = u32::try_from(metadata(operation).attempt).unwrap();
            check(&begun[&operation.name], last);
        }
        assert_eq!(begun.len(), SOME, "nothing else began");
    }
}
