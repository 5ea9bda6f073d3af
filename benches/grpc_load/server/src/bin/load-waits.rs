//! Wait load: opens WaitOperation streams, cancels their operations and measures the wake-up.
//! It has a minimal HTTP/2 client, so that the client does not limit 10 000 responses.
//!
//! ```text
//! load-waits herd ADDRESS PID COUNT CONNECTIONS [ADMIN]   one operation, COUNT streams
//! load-waits one ADDRESS COUNT                            COUNT operations, one after the other
//! ```
//!
//! Both print one line of numbers with tabs between them; see `herd` and `one`.

use std::{
    env,
    error::Error,
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use longrunning::proto::google::longrunning::{
    CancelOperationRequest, GetOperationRequest, Operation, WaitOperationRequest,
};
use prost::Message;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The number of streams that are opened together, and the delay between batches; grpc.aio
/// rejects streams that are opened faster.
const STREAM_BATCH_SIZE: usize = 50;
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// The delay before each call of `one`, so that the server is idle.
const IDLE_DELAY: Duration = Duration::from_millis(2);

/// The types and flags of HTTP/2 frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 connection that does not decode headers. A response is successful if it has a
/// message: a gRPC error has none.
struct Connection {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
    next: u32,
    /// The send window of the connection; requests never exceed the windows of streams.
    window: usize,
    ended: usize,
    /// The concatenated messages of all responses, with their gRPC prefixes.
    answers: Vec<u8>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["herd", address, pid, count, connections, ref admin @ ..] => herd(
            address,
            pid,
            count.parse()?,
            connections.parse()?,
            admin.first().copied(),
        ),
        ["one", address, count] => one(address, count.parse()?),
        _ => Err(
            "usage: load-waits herd ADDRESS PID COUNT CONNECTIONS [ADMIN] | one ADDRESS COUNT"
                .into(),
        ),
    }
}

/// Prints the RSS per stream in bytes, the RSS with all streams in MB, the time from cancel
/// to the last response in ms, and the server CPU per response in µs.
fn herd(
    address: &str,
    pid: &str,
    count: usize,
    connections: usize,
    admin: Option<&str>,
) -> Result<()> {
    let name = "operations/waited-0000";
    let wait = WaitOperationRequest {
        name: name.to_owned(),
        timeout: Some(prost_types::Duration {
            seconds: 500,
            nanos: 0,
        }),
    };
    let mut control = Connection::open(address)?;
    let get = GetOperationRequest {
        name: name.to_owned(),
    };
    control.call("GetOperation", &get)?;
    let mut herd: Vec<Connection> = (0..connections)
        .map(|_| Connection::open(address))
        .collect::<Result<_>>()?;
    for connection in &mut herd {
        connection.call("GetOperation", &get)?;
        connection.reset();
    }
    thread::sleep(Duration::from_millis(200));
    let before = rss_bytes(pid)?;
    let mut opened = 0;
    while opened < count {
        for connection in &mut herd {
            for _ in 0..STREAM_BATCH_SIZE.min(count - opened) {
                connection.send("WaitOperation", &wait)?;
                opened += 1;
            }
            connection.read_available()?;
        }
        thread::sleep(BATCH_DELAY);
    }
    let begun = Instant::now();
    loop {
        let open = match admin {
            Some(admin) => waiters_by_metrics(admin)?,
            None => waiters_by_name(&mut control)?,
        };
        if open == count {
            break;
        }
        if begun.elapsed() > Duration::from_secs(20) {
            return Err(format!("{open} of {count} waits are open").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    for connection in &mut herd {
        connection.read_available()?;
        if connection.ended != 0 {
            return Err("a wait returned too early".into());
        }
    }
    let (open, spent) = (rss_bytes(pid)?, cpu_nanos(pid)?);

    let shares: Vec<usize> = herd
        .iter()
        .map(|connection| connection.streams() - 1)
        .collect();
    let readers: Vec<_> = herd
        .into_iter()
        .zip(shares)
        .map(|(mut connection, share)| {
            thread::spawn(move || -> Result<(Instant, Connection)> {
                while connection.ended < share {
                    connection.read()?;
                }
                Ok((Instant::now(), connection))
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    let cancel = CancelOperationRequest {
        name: name.to_owned(),
    };
    control.call("CancelOperation", &cancel)?;
    let (mut last, mut answers) = (Duration::ZERO, 0);
    for reader in readers {
        let (ended, connection) = reader.join().expect("no reader panics")?;
        last = last.max(ended - begun);
        answers += connection.done_operations(name)?;
    }
    if answers != count {
        return Err(format!("{answers} of {count} responses are the done operation").into());
    }
    let spent = cpu_nanos(pid)? - spent;
    println!(
        "{}\t{:.1}\t{:.2}\t{:.2}",
        open.saturating_sub(before) / count,
        open as f64 / 1e6,
        last.as_secs_f64() * 1e3,
        spent as f64 / 1e3 / count as f64,
    );
    Ok(())
}

/// Prints p50 and p99 in µs of the time from sending a cancel to the response of a wait on
/// another connection, and of a Get for comparison.
fn one(address: &str, count: usize) -> Result<()> {
    let (mut waiting, mut control) = (Connection::open(address)?, Connection::open(address)?);
    let (mut waits, mut gets) = (Vec::new(), Vec::new());
    for number in 1..=count {
        let name = format!("operations/waited-{number:04}");
        waiting.reset();
        let request = WaitOperationRequest {
            name: name.clone(),
            timeout: None,
        };
        waiting.send("WaitOperation", &request)?;
        thread::sleep(IDLE_DELAY);
        let begun = Instant::now();
        control.call("GetOperation", &GetOperationRequest { name: name.clone() })?;
        gets.push(begun.elapsed());
        thread::sleep(IDLE_DELAY);
        waiting.read_available()?;
        if waiting.ended != 0 {
            return Err("a wait returned too early".into());
        }
        control.reset();
        let begun = Instant::now();
        control.send(
            "CancelOperation",
            &CancelOperationRequest { name: name.clone() },
        )?;
        while waiting.ended == 0 {
            waiting.read()?;
        }
        waits.push(begun.elapsed());
        while control.ended == 0 {
            control.read()?;
        }
        waiting.done_operations(&name)?;
    }
    let [(p50, p99), (get50, get99)] = [waits, gets].map(percentiles);
    println!("{p50:.0}\t{p99:.0}\t{get50:.0}\t{get99:.0}");
    Ok(())
}

fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    (at(50).as_secs_f64() * 1e6, at(99).as_secs_f64() * 1e6)
}

/// Returns the resident memory of a process in bytes.
fn rss_bytes(pid: &str) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kilobytes.ok_or("no RSS")?.parse::<usize>()? * 1024)
}

/// Returns the CPU time of all threads of a process in nanoseconds.
fn cpu_nanos(pid: &str) -> Result<u64> {
    let mut spent = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
        let running = schedstat.split_whitespace().next();
        spent += running.ok_or("no schedstat")?.parse::<u64>()?;
    }
    Ok(spent)
}

fn waiters_by_metrics(admin: &str) -> Result<usize> {
    let mut stream = TcpStream::connect(admin)?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n"
    )?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix("longrunning_open_waits "));
    Ok(value.ok_or("no longrunning_open_waits")?.trim().parse()?)
}

fn waiters_by_name(control: &mut Connection) -> Result<usize> {
    let name = "waiters".to_owned();
    control.call("GetOperation", &GetOperationRequest { name })?;
    let answer = control.answers.get(5..).ok_or("no answer")?;
    Ok(Operation::decode(answer)?.name.parse()?)
}

// === impl Connection ===

impl Connection {
    fn open(address: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS_INITIAL_WINDOW_SIZE of 1 MiB, and 1 GiB for the connection.
        hello.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0]));
        hello.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        stream.write_all(&hello)?;
        Ok(Self {
            stream,
            address: address.to_owned(),
            buffer: Vec::new(),
            next: 1,
            window: 65_535,
            ended: 0,
            answers: Vec::new(),
        })
    }

    fn streams(&self) -> usize {
        self.next as usize / 2
    }

    fn reset(&mut self) {
        self.ended = 0;
        self.answers.clear();
    }

    /// Makes one call and waits for its response; no other stream may be open.
    fn call(&mut self, method: &str, request: &impl Message) -> Result<()> {
        self.reset();
        self.send(method, request)?;
        while self.ended == 0 {
            self.read()?;
        }
        if self.answers.is_empty() {
            return Err(format!("{method} failed").into());
        }
        Ok(())
    }

    fn send(&mut self, method: &str, request: &impl Message) -> Result<()> {
        let request = request.encode_to_vec();
        let mut message = vec![0];
        message.extend(u32::try_from(request.len())?.to_be_bytes());
        message.extend(request);
        while self.window < message.len() {
            self.read()?;
        }
        self.window -= message.len();
        let mut frames = frame(HEADERS, END_HEADERS, self.next, &self.headers(method)?);
        frames.extend(frame(DATA, END_STREAM, self.next, &message));
        self.next += 2;
        Ok(self.stream.write_all(&frames)?)
    }

    /// Encodes headers in HPACK with names of the static table and literal values.
    fn headers(&self, method: &str) -> Result<Vec<u8>> {
        let path = format!("/google.longrunning.Operations/{method}");
        let mut block = vec![0x83, 0x86];
        for (name, value) in [
            (&[0x04][..], &*path),
            (&[0x01], &self.address),
            (&[0x0f, 0x10], "application/grpc"),
            (b"\0\x02te", "trailers"),
        ] {
            block.extend(name);
            block.push(u8::try_from(value.len())?);
            block.extend(value.as_bytes());
        }
        Ok(block)
    }

    fn read_available(&mut self) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        let read = loop {
            match self.read() {
                Ok(()) => {}
                Err(error) => match error.downcast_ref::<std::io::Error>() {
                    Some(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                    _ => break Err(error),
                },
            }
        };
        self.stream.set_nonblocking(false)?;
        read
    }

    fn read(&mut self) -> Result<()> {
        let mut chunk = [0; 64 * 1024];
        let length = self.stream.read(&mut chunk)?;
        if length == 0 {
            return Err("the server closed the connection".into());
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        let mut at = 0;
        while let Some(&[a, b, c, kind, flags, ..]) = self.buffer.get(at..at + 9) {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some(payload) = self.buffer.get(at + 9..at + 9 + length) else {
                break;
            };
            match kind {
                DATA => {
                    self.answers.extend_from_slice(payload);
                    self.ended += usize::from(flags & END_STREAM);
                }
                HEADERS => self.ended += usize::from(flags & END_STREAM),
                SETTINGS if flags & ACK == 0 => {
                    self.stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
                }
                PING if flags & ACK == 0 => {
                    self.stream.write_all(&frame(PING, ACK, 0, payload))?;
                }
                WINDOW_UPDATE if self.buffer[at + 5..at + 9] == [0; 4] => {
                    self.window += u32::from_be_bytes(payload.try_into()?) as usize;
                }
                RST_STREAM => return Err("the server reset a stream".into()),
                GOAWAY => return Err("the server sent GOAWAY".into()),
                _ => {}
            }
            at += 9 + length;
        }
        self.buffer.drain(..at);
        Ok(())
    }

    /// Returns the number of responses; fails if one is not the done operation `name`.
    fn done_operations(&self, name: &str) -> Result<usize> {
        let (mut rest, mut count) = (&self.answers[..], 0);
        while let [_, a, b, c, d, ..] = *rest {
            let (message, next) = rest[5..].split_at(u32::from_be_bytes([a, b, c, d]) as usize);
            let operation = Operation::decode(message)?;
            if operation.name != name || !operation.done {
                return Err(format!("{name} is not done in {operation:?}").into());
            }
            (rest, count) = (next, count + 1);
        }
        Ok(count)
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are small");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}
