//! A text-completion service that speaks OpenAI's protocol over plain HTTP, as far as measuring its
//! time needs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

/// A service that does not answer as it should.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// An address that cannot be used.
    #[error("{url}: {reason}; give a base address such as http://127.0.0.1:8080/v1")]
    Address {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The connection.
    #[error("{url}: {source}")]
    Connection {
        /// Address.
        url: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An answer that is none.
    #[error("{url}: {reason}")]
    Answer {
        /// Address.
        url: String,
        /// What came instead.
        reason: String,
    },
}

/// A completion and how long it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion {
    /// Tokens of the prompt as the service counts them.
    pub prompt_tokens: usize,
    /// Tokens that it wrote.
    pub completion_tokens: usize,
    /// Seconds from request to the end of the answer.
    pub seconds: f64,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    url: String,
    host: String,
    path: String,
    pub(crate) model: String,
}

/// Longest time without a byte of an answer.
const PATIENCE: Duration = Duration::from_secs(120);

impl Endpoint {
    /// A service at a base address, without asking it anything yet.
    ///
    /// # Errors
    /// Addresses that are not plain HTTP.
    pub fn new(url: &str, model: &str) -> Result<Self, EndpointError> {
        let bad = |reason: &str| EndpointError::Address {
            url: url.into(),
            reason: reason.into(),
        };
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| bad("only plain http:// is spoken here"))?;
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| {
            (host, path.trim_end_matches('/'))
        });
        if host.is_empty()
            || host.contains(char::is_whitespace)
            || path.contains(char::is_whitespace)
        {
            return Err(bad("it names no host"));
        }
        let host = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let path = if path.is_empty() {
            "/v1".to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Self {
            url: url.into(),
            host,
            path,
            model: model.into(),
        })
    }

    /// Asks for exactly `tokens` tokens after a prompt of about `words` tokens.
    ///
    /// # Errors
    /// When it cannot be reached or answers something else.
    pub fn complete(&self, words: usize, tokens: usize) -> Result<Completion, EndpointError> {
        let prompt = vec!["time"; words.max(1)].join(" ");
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "ignore_eos": true,
            "stream": false,
        });
        let start = Instant::now();
        let answer = self.post("/completions", &body.to_string())?;
        let seconds = start.elapsed().as_secs_f64();
        let count = |key: &str| {
            answer["usage"][key]
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
        };
        match (count("prompt_tokens"), count("completion_tokens")) {
            (Some(prompt_tokens), Some(completion_tokens)) => Ok(Completion {
                prompt_tokens,
                completion_tokens,
                seconds,
            }),
            _ => Err(self.answer(format!(
                "no `usage` with token counts in the answer: {}",
                shortened(&answer.to_string())
            ))),
        }
    }

    pub(crate) fn post(&self, call: &str, body: &str) -> Result<Value, EndpointError> {
        let failed = |source| EndpointError::Connection {
            url: self.url.clone(),
            source,
        };
        let address = self.host.to_socket_addrs().map_err(failed)?.next();
        let address = address.ok_or_else(|| self.answer("the host has no address".into()))?;
        let mut stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(10)).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let request = format!(
            "POST {}{call} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.path,
            self.host,
            body.len()
        );
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let (status, content) = read_response(&mut BufReader::new(stream)).map_err(failed)?;
        let text = String::from_utf8_lossy(&content);
        if status != 200 {
            return Err(self.answer(format!("status {status}: {}", shortened(&text))));
        }
        serde_json::from_str(&text)
            .map_err(|e| self.answer(format!("not JSON ({e}): {}", shortened(&text))))
    }

    pub(crate) fn answer(&self, reason: String) -> EndpointError {
        EndpointError::Answer {
            url: self.url.clone(),
            reason,
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Most bytes of an answer that are read.
const MOST: u64 = 16 << 20;

/// Status and content, of known length, in chunks, or up to the end of the connection.
fn read_response(reader: &mut impl BufRead) -> std::io::Result<(u16, Vec<u8>)> {
    let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer");
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line
        .split_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .filter(|_| line.starts_with("HTTP/"))
        .ok_or_else(malformed)?;
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(malformed());
        }
        let header = line.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse::<u64>().ok(),
                "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
                _ => {}
            }
        }
    }
    let mut content = Vec::new();
    if chunked {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
                .map_err(|_| malformed())?;
            if size == 0 || content.len() as u64 + size > MOST {
                break;
            }
            reader.by_ref().take(size).read_to_end(&mut content)?;
            line.clear();
            reader.read_line(&mut line)?;
        }
    } else {
        reader
            .by_ref()
            .take(length.unwrap_or(MOST).min(MOST))
            .read_to_end(&mut content)?;
    }
    Ok((status, content))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::runtime::{Rule, RuntimeFit, Summary, Timing, cells};
    use super::*;

    /// A service that takes 2 ms for each word of the prompt and 6 ms for each token, and says so
    /// in chunks.
    fn service(requests: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(requests) {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while line != "\r\n" {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.strip_prefix("Content-Length: ") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let asked: Value = serde_json::from_slice(&body).unwrap();
                let (words, tokens) = (
                    asked["prompt"].as_str().unwrap().split(' ').count(),
                    asked["max_tokens"].as_u64().unwrap(),
                );
                std::thread::sleep(Duration::from_millis(2 * words as u64 + 6 * tokens));
                let answer =
                    json!({ "usage": { "prompt_tokens": words, "completion_tokens": tokens } })
                        .to_string();
                let (first, second) = answer.split_at(10);
                let chunks = format!(
                    "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
                    first.len(),
                    second.len()
                );
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
                )
                .unwrap();
            }
        });
        format!("http://{address}/v1")
    }

    #[test]
    fn the_times_of_a_local_service_are_found_again() {
        let (prompts, outputs, trials) = ([1, 10, 20], [1, 4, 8], 4);
        let endpoint =
            Endpoint::new(&service(prompts.len() * outputs.len() * trials), "m").unwrap();
        let mut timings = Vec::new();
        for prompt in prompts {
            for output in outputs {
                for _ in 0..trials {
                    let done = endpoint.complete(prompt, output).unwrap();
                    assert_eq!(
                        (done.prompt_tokens, done.completion_tokens),
                        (prompt, output)
                    );
                    timings.push(Timing {
                        prompt: done.prompt_tokens,
                        output: done.completion_tokens,
                        seconds: done.seconds,
                    });
                }
            }
        }
        let fit = RuntimeFit::new(&cells(&timings, Summary::Fastest), false).unwrap();
        // A sleep is never shorter than asked for, and on a busy machine somewhat longer.
        assert!(fit.beta > 0.0055 && fit.beta < 0.012, "{fit:?}");
        let slope =
            (fit.prompt_seconds(20, Rule::Linear) - fit.prompt_seconds(1, Rule::Linear)) / 19.0;
        assert!(slope > 0.0015 && slope < 0.004, "{fit:?}");
    }

    #[test]
    fn answers_of_other_kinds_are_named() {
        let address = |url: &str| Endpoint::new(url, "m").map(|_| ()).unwrap_err().to_string();
        assert!(address("https://example.org/v1").contains("plain http://"));
        assert!(address("http:///v1").contains("no host"));
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(
            Endpoint::new(&format!("http://{closed}"), "m")
                .unwrap()
                .complete(1, 1)
                .is_err()
        );
        let answers = |text: &'static str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut seen = [0; 4096];
                let _ = stream.read(&mut seen);
                let _ = stream.write_all(text.as_bytes());
            });
            Endpoint::new(&url, "m")
                .unwrap()
                .complete(1, 1)
                .unwrap_err()
                .to_string()
        };
        assert!(
            answers("HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nnothing")
                .contains("status 404: nothing")
        );
        assert!(answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").contains("usage"));
        assert!(answers("hello\r\n\r\n").contains("not an HTTP answer"));
    }
}
