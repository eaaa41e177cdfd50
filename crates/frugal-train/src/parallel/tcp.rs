//! The processes of a run, each connected to each by TCP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::collective::Collective;
use super::error::ParallelError;
use super::frame::{self, FrameError};
use super::hello::{Guest, HelloError, RunIdentity, introduce, refuse, welcome};

/// How long processes wait for each other.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until all have come together.
    pub join: Duration,
    /// For the next message of a process that may be computing.
    pub message: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(120),
            message: Duration::from_secs(1800),
        }
    }
}

/// A process that says hello answers within this time.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// A connection is one of this run's within this time, or a stranger's that keeps others waiting.
const STRANGER_TIME: Duration = Duration::from_secs(2);
/// Between two looks for who comes.
const LOOK: Duration = Duration::from_millis(20);
/// How long others may take to read why a run ended.
const FAREWELL: Duration = Duration::from_millis(500);
/// More processes than this are refused.
pub const MAX_WORLD: usize = 1024;

/// The processes of a run.
#[derive(Debug)]
pub struct TcpGroup {
    rank: usize,
    /// By rank; none for this process.
    peers: Vec<Option<TcpStream>>,
    sent: u64,
    patience: Patience,
}

fn join_error(reason: impl Into<String>) -> ParallelError {
    ParallelError::Join {
        reason: reason.into(),
    }
}

/// Addresses of the other processes, longest form of each line included.
const MAX_TABLE: u64 = 64 * MAX_WORLD as u64;

impl TcpGroup {
    /// Rank 0: waits for all others at `listener`, until `stop` is set. `watch` is asked again and again
    /// whether there is still somebody to wait for.
    ///
    /// # Errors
    /// Processes that do not come in time or do not fit, [`ParallelError::Stopped`], and what `watch`
    /// says.
    pub fn host(
        listener: &TcpListener,
        identity: &RunIdentity,
        patience: Patience,
        stop: &AtomicBool,
        mut watch: impl FnMut() -> Result<(), String>,
    ) -> Result<Self, ParallelError> {
        let world = identity.world;
        check_world(world)?;
        let mut group = Self::new(0, world, patience);
        let mut table = vec![String::new(); world];
        let until = Instant::now() + patience.join;
        while group.peers[1..].iter().any(Option::is_none) {
            go_on(stop)?;
            watch().map_err(join_error)?;
            let Some((stream, guest)) = group.accept(listener, identity, until)? else {
                continue;
            };
            let address = stream.peer_addr().map_err(|e| join_error(e.to_string()))?;
            table[guest.rank] = SocketAddr::new(address.ip(), guest.port).to_string();
            group.peers[guest.rank] = Some(stream);
        }
        let table = table.join("\n");
        group.broadcast(0, table.into_bytes(), MAX_TABLE, "coming together")?;
        group.ready()
    }

    /// Any other rank: goes to rank 0 at `address`, which may not be there yet, and waits for the others,
    /// until `stop` is set.
    ///
    /// # Errors
    /// No rank 0, one that does not let this process in, [`ParallelError::Stopped`].
    pub fn join(
        address: &str,
        rank: usize,
        identity: &RunIdentity,
        patience: Patience,
        stop: &AtomicBool,
    ) -> Result<Self, ParallelError> {
        let world = identity.world;
        check_world(world)?;
        if rank == 0 || rank >= world {
            return Err(join_error(format!(
                "rank {rank} of {world} processes cannot join: those that can are 1 to {}",
                world - 1
            )));
        }
        let mut group = Self::new(rank, world, patience);
        let until = Instant::now() + patience.join;
        let mut host = connect(address, until, stop)?;
        let own = host.local_addr().map_err(|e| join_error(e.to_string()))?;
        let listener = listen(own.ip())?;
        let port = listener
            .local_addr()
            .map_err(|e| join_error(e.to_string()))?;
        let me = Guest {
            rank,
            port: port.port(),
        };
        let refused_by = |whom: usize, reason: String| {
            join_error(format!("rank {whom} did not let rank {rank} in: {reason}"))
        };
        // Strangers may keep rank 0 from listening for a while.
        loop {
            match introduce(&host, me, identity) {
                Err(HelloError::Stranger(_)) if Instant::now() < until => {
                    host = connect(address, until, stop)?;
                }
                Ok(()) => break,
                Err(HelloError::Stranger(reason) | HelloError::Refused(reason)) => {
                    return Err(refused_by(0, reason));
                }
            }
        }
        // The addresses come when all have.
        wait_for_word(&host, patience.join, stop)?;
        group.peers[0] = Some(host);
        let table = group.broadcast(0, Vec::new(), MAX_TABLE, "coming together")?;
        let table = String::from_utf8_lossy(&table).into_owned();
        let addresses: Vec<&str> = table.split('\n').collect();
        if addresses.len() != world {
            return Err(join_error("rank 0 sent no address for each rank"));
        }
        for (other, address) in addresses.iter().enumerate().take(rank).skip(1) {
            let stream = connect(address, until, stop)?;
            introduce(&stream, me, identity).map_err(|error| match error {
                HelloError::Stranger(reason) | HelloError::Refused(reason) => {
                    refused_by(other, reason)
                }
            })?;
            group.peers[other] = Some(stream);
        }
        while group.peers[rank + 1..].iter().any(Option::is_none) {
            go_on(stop)?;
            if let Some((stream, guest)) = group.accept(&listener, identity, until)? {
                group.peers[guest.rank] = Some(stream);
            }
        }
        group.ready()
    }

    fn new(rank: usize, world: usize, patience: Patience) -> Self {
        Self {
            rank,
            peers: (0..world).map(|_| None).collect(),
            sent: 0,
            patience,
        }
    }

    /// The next process that comes, if it is one of this run; strangers are sent away.
    fn accept(
        &self,
        listener: &TcpListener,
        identity: &RunIdentity,
        until: Instant,
    ) -> Result<Option<(TcpStream, Guest)>, ParallelError> {
        let failed = |e: std::io::Error| join_error(format!("cannot wait for others: {e}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= until {
                    let missing: Vec<String> = (0..self.peers.len())
                        .filter(|&i| i > self.rank && self.peers[i].is_none())
                        .map(|i| i.to_string())
                        .collect();
                    return Err(join_error(format!(
                        "rank {} did not come within {} s",
                        missing.join(", "),
                        self.patience.join.as_secs()
                    )));
                }
                std::thread::sleep(LOOK);
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        if prepare(&stream, HELLO_TIME).is_err() {
            return Ok(None);
        }
        let hello = Timed {
            stream: &stream,
            until: Instant::now() + STRANGER_TIME,
        };
        match welcome(hello, identity) {
            Ok(guest) if guest.rank <= self.rank => Err(join_error(format!(
                "rank {} came to rank {}",
                guest.rank, self.rank
            ))),
            Ok(guest) if self.peers[guest.rank].is_some() => {
                let reason = format!("there are two processes of rank {}", guest.rank);
                refuse(&stream, &reason);
                Err(join_error(reason))
            }
            Ok(guest) => Ok(Some((stream, guest))),
            Err(HelloError::Stranger(reason)) => {
                tracing::warn!("a connection was refused: {reason}");
                Ok(None)
            }
            Err(HelloError::Refused(reason)) => Err(join_error(reason)),
        }
    }

    /// From now on messages may take as long as a step does.
    fn ready(self) -> Result<Self, ParallelError> {
        for stream in self.peers.iter().flatten() {
            prepare(stream, self.patience.message).map_err(|e| join_error(e.to_string()))?;
        }
        Ok(self)
    }

    fn peer(&self, rank: usize, doing: &'static str) -> Result<&TcpStream, ParallelError> {
        self.peers
            .get(rank)
            .and_then(Option::as_ref)
            .ok_or(ParallelError::Lost {
                rank,
                doing,
                reason: "there is no connection to it".into(),
            })
    }

    fn failed(&self, rank: usize, doing: &'static str, error: FrameError) -> ParallelError {
        let reason = match error {
            FrameError::Aborted(reason) => return ParallelError::Aborted { rank, reason },
            FrameError::Unexpected(found) => {
                return ParallelError::Protocol {
                    rank,
                    doing,
                    expected: "what this rank sends".into(),
                    found,
                };
            }
            FrameError::Io(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    let seconds = self.patience.message.as_secs();
                    format!("it said nothing for {seconds} s")
                }
                ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe => "its process ended".into(),
                _ => error.to_string(),
            },
        };
        ParallelError::Lost {
            rank,
            doing,
            reason,
        }
    }

    /// Sends beside `receive`, which the other side may be waiting for.
    fn both<T>(
        &mut self,
        (to, bytes): (usize, &[u8]),
        from: usize,
        doing: &'static str,
        receive: impl FnOnce(&TcpStream) -> Result<T, FrameError>,
    ) -> Result<T, ParallelError> {
        let (out, into) = (self.peer(to, doing)?, self.peer(from, doing)?);
        let (received, sent) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| frame::write(out, frame::DATA, bytes));
            let received = receive(into);
            let sent = sender
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("sending failed")));
            (received, sent)
        });
        // What the other side says is more than that it is gone.
        let received = received.map_err(|e| self.failed(from, doing, e))?;
        sent.map_err(|e| self.failed(to, doing, e.into()))?;
        self.sent += bytes.len() as u64;
        Ok(received)
    }
}

fn check_world(world: usize) -> Result<(), ParallelError> {
    if (2..=MAX_WORLD).contains(&world) {
        return Ok(());
    }
    Err(join_error(format!(
        "a run of {world} processes: there can be 2 to {MAX_WORLD}"
    )))
}

/// A socket that waits for others at a free port of this address.
///
/// # Errors
/// An address that is not this machine's.
pub fn listen(address: IpAddr) -> Result<TcpListener, ParallelError> {
    TcpListener::bind((address, 0))
        .map_err(|e| join_error(format!("cannot wait for others at {address}: {e}")))
}

/// A connection that is done with by a time, however slowly the other side speaks.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(ErrorKind::TimedOut, "it speaks too slowly")),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut stream = self.stream;
        stream.flush()
    }
}

fn prepare(stream: &TcpStream, patience: Duration) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))
}

/// # Errors
/// A run that was asked to stop.
fn go_on(stop: &AtomicBool) -> Result<(), ParallelError> {
    match stop.load(Ordering::SeqCst) {
        true => Err(ParallelError::Stopped),
        false => Ok(()),
    }
}

/// Waits until something can be read, or is known to come no more.
fn wait_for_word(
    stream: &TcpStream,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<(), ParallelError> {
    let failed = |e: io::Error| join_error(e.to_string());
    let until = Instant::now() + patience;
    stream.set_read_timeout(Some(10 * LOOK)).map_err(failed)?;
    loop {
        go_on(stop)?;
        let silent = [
            ErrorKind::WouldBlock,
            ErrorKind::TimedOut,
            ErrorKind::Interrupted,
        ];
        match stream.peek(&mut [0]) {
            Err(error) if silent.contains(&error.kind()) && Instant::now() < until => {}
            // What else was found is said by who reads it, unless both sides were asked to stop.
            _ => {
                go_on(stop)?;
                return prepare(stream, HELLO_TIME).map_err(failed);
            }
        }
    }
}

fn connect(address: &str, until: Instant, stop: &AtomicBool) -> Result<TcpStream, ParallelError> {
    let failed = |reason: String| join_error(format!("{address}: {reason}"));
    let found = address
        .to_socket_addrs()
        .map_err(|e| failed(e.to_string()))?;
    let found: Vec<SocketAddr> = found.collect();
    loop {
        go_on(stop)?;
        let mut last = String::from("there is no such address");
        for address in &found {
            match TcpStream::connect_timeout(address, HELLO_TIME) {
                Ok(stream) => {
                    prepare(&stream, HELLO_TIME).map_err(|e| failed(e.to_string()))?;
                    return Ok(stream);
                }
                Err(error) => last = error.to_string(),
            }
        }
        if found.is_empty() || Instant::now() >= until {
            return Err(failed(last));
        }
        std::thread::sleep(10 * LOOK);
    }
}

impl Collective for TcpGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn exchange(
        &mut self,
        to: usize,
        bytes: &[u8],
        from: usize,
        into: &mut [u8],
        doing: &'static str,
    ) -> Result<(), ParallelError> {
        self.both((to, bytes), from, doing, |stream| {
            frame::read_into(stream, into)
        })
    }

    fn exchange_any(
        &mut self,
        to: usize,
        bytes: &[u8],
        from: usize,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError> {
        self.both((to, bytes), from, doing, |stream| frame::read(stream, most))
    }

    fn send(&mut self, to: usize, bytes: &[u8], doing: &'static str) -> Result<(), ParallelError> {
        let written = frame::write(self.peer(to, doing)?, frame::DATA, bytes);
        written.map_err(|e| self.failed(to, doing, e.into()))?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    fn receive(
        &mut self,
        from: usize,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError> {
        frame::read(self.peer(from, doing)?, most).map_err(|e| self.failed(from, doing, e))
    }

    fn bytes_sent(&self) -> u64 {
        self.sent
    }

    fn abort(&mut self, reason: &str) {
        let streams: Vec<TcpStream> = self.peers.iter_mut().filter_map(Option::take).collect();
        for stream in &streams {
            // A process that is gone needs not be told.
            let _ = stream.set_write_timeout(Some(FAREWELL));
            refuse(stream, reason);
            let _ = stream.shutdown(Shutdown::Write);
        }
        // A connection that is closed with unread data in it takes the message back.
        let until = Instant::now() + FAREWELL;
        for mut stream in &streams {
            let _ = stream.set_read_timeout(Some(FAREWELL));
            let mut scratch = [0; 4096];
            while Instant::now() < until
                && matches!(std::io::Read::read(&mut stream, &mut scratch), Ok(n) if n > 0)
            {
            }
        }
    }
}
