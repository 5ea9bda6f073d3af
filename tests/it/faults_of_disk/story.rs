//! One story of a server and its disk: a fixed sequence of calls, told again
//! with another fault each time.

use std::{collections::BTreeMap, time::Duration};

use longrunning::{
    Progress,
    proto::{
        google::longrunning::{
            CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest, Operation,
        },
        longrunning::v1::{CreateOperationRequest, Lease, LeaseReport, finish_operation_request},
    },
};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::step::{Step, bulk};
use crate::support::{
    disk::{Class, Course, Disk, Fault, POWER_CUT, Point},
    get,
    ledger::Ledger,
    shop::{beat, failure, finish, look, seconds, self_executed, with_input},
    stored::{Begun, Ended, Fail, Serving, begin},
};

/// Longer than a server takes to try again, or to notice the loss of power, even
/// on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// So many calls fail after a refusal, one each time that the server tries again.
const TRIES: u64 = 3;

/// A server, its disk, and what is known of its operations.
pub(super) struct Story {
    pub(super) disk: Disk,
    pub(super) ledger: Ledger,
    pub(super) point: Option<Point>,
    leases: BTreeMap<&'static str, Lease>,
    /// How many calls were refused.
    pub(super) refused: usize,
    /// How many starts were.
    pub(super) not_started: usize,
    /// Whether the server ended while changes were refused: they may be there.
    is_shaken: bool,
    /// Whether it said that changes can be kept again before the disk was mended.
    has_healed: bool,
}

/// The power is lost, as it seems: what was heard last.
#[derive(Debug)]
pub(super) struct Cut(pub(super) String);

/// What came of a step.
enum Told {
    Done,
    Refused,
    /// It took effect when it was refused and the server died; nobody has the
    /// lease.
    Taken,
}

/// What a call was answered.
#[derive(Debug)]
enum Answer {
    /// Success, maybe with the operation.
    Shown(Option<Operation>),
    /// There is nothing to lease.
    Nothing,
}

// === impl Story ===

impl Story {
    pub(super) fn new(disk: Disk, point: Option<Point>) -> Self {
        if let Some(point) = point {
            disk.set(point);
        }
        Self {
            disk,
            ledger: Ledger::default(),
            point,
            leases: BTreeMap::new(),
            refused: 0,
            not_started: 0,
            is_shaken: false,
            has_healed: false,
        }
    }

    /// Tells it to its end, or to the loss of power.
    pub(super) async fn tell(&mut self, steps: &[Step]) -> Result<(), Cut> {
        let mut serving = self.start().await?;
        for step in steps {
            if let Step::Stop | Step::Kill = step {
                serving = self.restart(serving, *step).await?;
                continue;
            }
            loop {
                match self.step(*step, &serving).await {
                    Ok(Told::Done) => {
                        self.has_healed = false;
                        break;
                    }
                    Ok(Told::Refused) => serving = self.mend(serving).await?,
                    // Nobody can go on with it.
                    Ok(Told::Taken) => {
                        serving.kill().await;
                        return Ok(());
                    }
                    Err(cut) => {
                        let ended = timeout(PATIENCE, serving.end()).await;
                        let ended = ended.unwrap_or_else(|_| panic!("{step:?}: {cut:?}"));
                        assert_eq!(ended.status.code(), Some(POWER_CUT), "{ended:?}");
                        return Err(cut);
                    }
                }
            }
        }
        serving.kill().await;
        Ok(())
    }

    async fn restart(&mut self, serving: Serving, how: Step) -> Result<Serving, Cut> {
        let ended = match how {
            Step::Stop => serving.stop().await,
            _ => serving.kill().await,
        };
        match (ended.status.code(), how) {
            (Some(POWER_CUT), _) => return Err(Cut("the end".to_owned())),
            (code, Step::Stop) => assert_eq!(code, Some(0), "{ended:?}"),
            _ => {}
        }
        let serving = self.start().await?;
        let there = list(&serving).await?;
        self.ledger.settle(&there);
        Ok(serving)
    }

    /// A start that meets the fault works, or says clearly why it does not.
    async fn start(&mut self) -> Result<Serving, Cut> {
        let (file, environment) = (self.disk.file(), self.disk.environment());
        match begin(&file, &environment).await {
            Begun::Serving(serving) => Ok(*serving),
            Begun::Ended(ended) => {
                if ended.status.code() == Some(POWER_CUT) {
                    return Err(Cut("the start".to_owned()));
                }
                check_refusal(&ended);
                self.not_started += 1;
                self.disk.mend();
                match begin(&file, &environment).await {
                    Begun::Serving(serving) => Ok(*serving),
                    Begun::Ended(ended) => panic!("{:?}: {ended:?}", self.point),
                }
            }
        }
    }

    /// Makes a call; one that is refused has changed nothing.
    async fn step(&mut self, step: Step, serving: &Serving) -> Result<Told, Cut> {
        let name = format!("operations/{}", step.id());
        let before = self.ledger.known(&name);
        let ticket = step.effect().map(|effect| self.ledger.begin(&name, effect));
        match self.call(step, serving).await {
            Ok(Answer::Shown(shown)) => {
                if let Some(ticket) = ticket {
                    self.ledger.acknowledged(&ticket);
                }
                if let Some(operation) = shown {
                    self.ledger.saw(&name, &before, Some(&operation));
                }
                self.look(&name, serving).await?;
                Ok(Told::Done)
            }
            Ok(Answer::Nothing) if self.is_shaken => Ok(Told::Taken),
            // The first call was refused, and took effect when the server died.
            Err(Fail::Refused(Code::NotFound, _)) if self.is_shaken && before.gone => {
                Ok(Told::Done)
            }
            Err(Fail::Refused(Code::AlreadyExists, _)) if self.is_shaken => Ok(Told::Done),
            Err(Fail::Refused(Code::Unavailable, reason)) => {
                assert_eq!(reason, "STORE_UNAVAILABLE", "{step:?}");
                self.refused += 1;
                let now = self.look(&name, serving).await?;
                let shown = before.seen.filter(|_| !before.gone);
                let unchanged = now.as_ref() == shown.as_deref();
                assert!(unchanged, "{step:?} was refused: {shown:?} {now:?}");
                Ok(Told::Refused)
            }
            Err(lost @ Fail::Lost(_)) => Err(lost.into()),
            other => panic!("{step:?}: {other:?}"),
        }
    }

    /// Reads go on, whatever becomes of changes.
    async fn look(&mut self, name: &str, serving: &Serving) -> Result<Option<Operation>, Cut> {
        let before = self.ledger.known(name);
        let answer = serving.client().get_operation(get(name)).await;
        let operation = match answer.map_err(Fail::from) {
            Ok(answer) => Some(answer.into_inner()),
            Err(Fail::Refused(Code::NotFound, _)) => None,
            Err(lost @ Fail::Lost(_)) => return Err(lost.into()),
            Err(refused) => panic!("{name}: {refused:?}"),
        };
        self.ledger.saw(name, &before, operation.as_ref());
        let there = list(serving).await?;
        assert_eq!(there.get(name), operation.as_ref());
        Ok(operation)
    }

    /// A trouble that lasts is told to operators, and its end too.
    async fn mend(&mut self, serving: Serving) -> Result<Serving, Cut> {
        let point = self.point.expect("nothing is refused without a fault");
        assert!(
            !self.has_healed,
            "{point:?}: it said that changes can be kept again, and refuses the same"
        );
        let is_first = self.refused == 1 && point.course != Course::Once;
        // Other calls need not be made again.
        if is_first && matches!(point.class, Class::Write | Class::Sync) {
            let ready = ready(&serving).await?;
            assert!(ready.starts_with("HTTP/1.1 503"), "{point:?}: {ready}");
            assert!(ready.contains("changes cannot be kept"), "{ready}");
            assert!(
                ready.contains("operations.db"),
                "it names the file: {ready}"
            );
        }
        if is_first && matches!(point.course, Course::Killed | Course::Stopped) {
            self.is_shaken = true;
            let ended = match point.course {
                Course::Killed => serving.kill().await,
                _ => serving.stop().await,
            };
            let is_stopped = point.course == Course::Stopped;
            assert!(!is_stopped || ended.status.code() == Some(0), "{ended:?}");
            self.disk.mend();
            let serving = self.start().await?;
            let there = list(&serving).await?;
            self.ledger.settle(&there);
            return Ok(serving);
        }
        if is_first && matches!(point.class, Class::Write | Class::Sync) {
            self.has_healed = self.lasts(point, &serving).await?;
            if self.has_healed {
                return Ok(serving);
            }
        }
        self.disk.mend();
        // Nobody asks for a change meanwhile: the server finds out by itself.
        let deadline = Instant::now() + PATIENCE;
        while !ready(&serving).await?.starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "{point:?}: it does not heal");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(serving)
    }

    /// The trouble goes on while the disk does not work: however often the server
    /// tries, it does not say anything else. Returns whether it did.
    async fn lasts(&mut self, point: Point, serving: &Serving) -> Result<bool, Cut> {
        let enough = self.disk.failed() + TRIES;
        let deadline = Instant::now() + PATIENCE;
        while self.disk.failed() < enough {
            let ready = ready(serving).await?;
            if ready.starts_with("HTTP/1.1 200") {
                // A full disk has room again when the log was moved meanwhile. If
                // so, the change that was refused is not refused again.
                assert_eq!(point.fault, Fault::Full, "{point:?}: the disk still fails");
                return Ok(true);
            }
            assert!(Instant::now() < deadline, "{point:?}: it does not try");
            sleep(Duration::from_millis(20)).await;
        }
        let ready = ready(serving).await?;
        assert!(ready.starts_with("HTTP/1.1 503"), "{point:?}: {ready}");
        Ok(false)
    }

    async fn call(&mut self, step: Step, serving: &Serving) -> Result<Answer, Fail> {
        let (mut client, mut worker) = (serving.client(), serving.worker());
        let name = format!("operations/{}", step.id());
        let lease = self.leases.get(step.id()).cloned().unwrap_or_default();
        match step {
            Step::Hold(id) | Step::Queue(id, _) => {
                let request = match step {
                    Step::Queue(id, size) => with_input(id, Some(bulk(size))),
                    _ => self_executed("w"),
                };
                let request = CreateOperationRequest {
                    operation_id: id.into(),
                    request_id: match step {
                        // The digest of a large request takes long in a debug build.
                        Step::Queue(_, 1_000_000..) => String::new(),
                        _ => format!("request of {id}"),
                    },
                    // Longer than any story takes.
                    lease_duration: seconds(3600),
                    ..request
                };
                let created = worker.create_operation(request).await?.into_inner();
                assert!(self.is_shaken || !created.reused, "{step:?}");
                self.leases.extend(created.lease.map(|lease| (id, lease)));
                Ok(Answer::Shown(created.operation))
            }
            Step::Lease(id) => {
                // Each has a queue of its own.
                let answer = worker.lease_operations(look(&[id], "w", 1)).await?;
                let Some(lease) = answer.into_inner().leases.pop() else {
                    return Ok(Answer::Nothing);
                };
                self.ledger.claimed(&lease.name, lease.attempt);
                self.leases.insert(id, lease);
                Ok(Answer::Shown(None))
            }
            Step::Report(_, units) => {
                let report = LeaseReport {
                    name,
                    lease_token: lease.lease_token,
                    progress: Some(Progress {
                        done_units: units,
                        ..Progress::default()
                    }),
                    checkpoint: Some(bulk(usize::try_from(units).unwrap() * 1000)),
                    ..LeaseReport::default()
                };
                let answer = worker.heartbeat(beat("w", [report])).await?;
                assert_eq!(answer.into_inner().directives[0].error, None);
                Ok(Answer::Shown(None))
            }
            Step::Succeed(..) | Step::Fail(_) => {
                let outcome = match step {
                    Step::Succeed(_, size) => {
                        finish_operation_request::Outcome::Response(bulk(size))
                    }
                    _ => failure(13, "broken"),
                };
                let answer = worker.finish_operation(finish(&lease, outcome)).await?;
                Ok(Answer::Shown(Some(answer.into_inner())))
            }
            Step::Cancel(_) => {
                let request = CancelOperationRequest { name };
                client.cancel_operation(request).await?;
                Ok(Answer::Shown(None))
            }
            Step::Delete(_) => {
                let request = DeleteOperationRequest { name };
                client.delete_operation(request).await?;
                Ok(Answer::Shown(None))
            }
            Step::Stop | Step::Kill => unreachable!("they are no calls"),
        }
    }
}

// === impl Cut ===

impl From<Fail> for Cut {
    fn from(fail: Fail) -> Self {
        Self(match fail {
            Fail::Lost(status) => status.to_string(),
            Fail::Refused(code, reason) => format!("{code:?}, {reason}"),
        })
    }
}

/// What operators are told.
async fn ready(serving: &Serving) -> Result<String, Cut> {
    let ready = serving.readiness().await;
    ready.ok_or_else(|| Cut("nobody tells whether it is ready".to_owned()))
}

/// All operations.
pub(super) async fn list(serving: &Serving) -> Result<BTreeMap<String, Operation>, Fail> {
    let request = ListOperationsRequest {
        page_size: 1000,
        ..ListOperationsRequest::default()
    };
    let page = serving
        .client()
        .list_operations(request)
        .await?
        .into_inner();
    assert_eq!(page.next_page_token, "");
    let named = |operation: Operation| (operation.name.clone(), operation);
    Ok(page.operations.into_iter().map(named).collect())
}

/// A start that fails ends with 2, and with one line that says why.
fn check_refusal(ended: &Ended) {
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let errors = ended.log.iter().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{ended:?}");
    let last = ended.log.last().unwrap();
    assert!(last.starts_with("error: "), "{ended:?}");
    assert!(last.contains("operations.db"), "it names the file: {last}");
}
