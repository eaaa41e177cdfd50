//! A text-completion service that speaks OpenAI's protocol over HTTP or HTTPS.

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use ureq::Agent;

/// A service that does not answer as it should.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// An address that cannot be used.
    #[error("{url}: {reason}; give a base address such as https://api.example.org/v1")]
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
        /// The client's reason.
        source: Box<ureq::Error>,
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

/// Which of the protocol's calls is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// `/completions`: a text is continued.
    #[default]
    Completions,
    /// `/chat/completions`: a message is answered.
    Chat,
}

/// What a service turned out not to know; it is not asked for it again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dialect {
    /// Knows no way to keep the model from ending early.
    ends_early: bool,
    /// Calls the longest answer `max_completion_tokens`.
    long_name: bool,
}

impl Dialect {
    /// The name of the longest answer.
    pub(crate) fn longest(self) -> &'static str {
        if self.long_name {
            "max_completion_tokens"
        } else {
            "max_tokens"
        }
    }
}

/// A service.
#[derive(Debug)]
pub struct Endpoint {
    agent: Agent,
    url: String,
    model: String,
    call: Call,
    /// Contents of the `Authorization` header.
    authorization: Option<String>,
    dialect: Cell<Dialect>,
}

/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most bytes of an answer that are read.
const MOST: u64 = 16 << 20;
/// How often a service that is too busy is asked again, and after how long at most.
const ATTEMPTS: usize = 5;
const LONGEST_WAIT: u64 = 60;

impl Endpoint {
    /// A service at a base address, without asking it anything yet. An API key is sent as `Bearer`
    /// token.
    ///
    /// # Errors
    /// Addresses that are neither HTTP nor HTTPS, and keys that would cross the network in the open.
    pub fn new(
        url: &str,
        model: &str,
        call: Call,
        key: Option<&str>,
    ) -> Result<Self, EndpointError> {
        let bad = |reason: &str| EndpointError::Address {
            url: url.into(),
            reason: reason.into(),
        };
        let (secure, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(bad("only http:// and https:// are spoken here")),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || rest.contains(char::is_whitespace) {
            return Err(bad("it names no host"));
        }
        if host.contains('@') || path.contains(['?', '#']) {
            return Err(bad("names, passwords and queries have no place in it"));
        }
        let here = ["127.0.0.1", "localhost", "[::1]"];
        let name = host.rsplit_once(':').map_or(host, |(name, port)| {
            if port.bytes().all(|b| b.is_ascii_digit()) {
                name
            } else {
                host
            }
        });
        if key.is_some() && !secure && !here.contains(&name) {
            return Err(bad("the API key would cross the network in the open"));
        }
        if key.is_some_and(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(bad(
                "the API key is empty or has characters that no key has",
            ));
        }
        let path = path.trim_end_matches('/');
        let scheme = if secure { "https" } else { "http" };
        let path = if path.is_empty() { "v1" } else { path };
        let config = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .timeout_connect(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            // A key must not follow a redirection to another host.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Ok(Self {
            agent: config.into(),
            url: format!("{scheme}://{host}/{path}"),
            model: model.into(),
            call,
            authorization: key.map(|key| format!("Bearer {key}")),
            dialect: Cell::default(),
        })
    }

    /// What the service calls the model.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Which of the protocol's calls is used.
    pub(crate) fn call(&self) -> Call {
        self.call
    }

    /// Asks for exactly `tokens` tokens after a prompt of about `words` tokens.
    ///
    /// # Errors
    /// When it cannot be reached or answers something else.
    pub fn complete(&self, words: usize, tokens: usize) -> Result<Completion, EndpointError> {
        let (answer, seconds) = self.ask(&|dialect| self.body(dialect, words, tokens))?;
        self.completion(&answer, seconds)
    }

    /// Asks for what `body` makes of the service's dialect, again where it is too busy. Gives the
    /// answer and the seconds that it took.
    pub(crate) fn ask(
        &self,
        body: &dyn Fn(Dialect) -> Value,
    ) -> Result<(Value, f64), EndpointError> {
        let (mut busy, mut unknown) = (0, 0);
        loop {
            let body = body(self.dialect.get()).to_string();
            let start = Instant::now();
            let (status, wait, text) = self.post(&body)?;
            let seconds = start.elapsed().as_secs_f64();
            match status {
                200 => {
                    let answer = serde_json::from_str(&text);
                    return answer.map(|answer| (answer, seconds)).map_err(|e| {
                        self.refused(format!("not JSON ({e}): {}", shortened(&text)))
                    });
                }
                429 | 500 | 502..=504 if busy + 1 < ATTEMPTS => {
                    busy += 1;
                    std::thread::sleep(Duration::from_secs(wait.min(LONGEST_WAIT)));
                }
                400 | 422 if unknown < 2 && self.learn(&text) => unknown += 1,
                _ => return Err(self.refused(format!("status {status}: {}", shortened(&text)))),
            }
        }
    }

    fn body(&self, dialect: Dialect, words: usize, tokens: usize) -> Value {
        let prompt = vec!["time"; words.max(1)].join(" ");
        let mut body = match self.call {
            Call::Completions => json!({ "prompt": prompt }),
            Call::Chat => json!({ "messages": [{ "role": "user", "content": prompt }] }),
        };
        body["model"] = json!(self.model);
        body[dialect.longest()] = json!(tokens);
        body["stream"] = json!(false);
        if !dialect.long_name {
            // Models that know only the long name fix their temperature, too.
            body["temperature"] = json!(0);
        }
        if !dialect.ends_early {
            body["min_tokens"] = json!(tokens);
            body["ignore_eos"] = json!(true);
        }
        body
    }

    /// Takes from a refusal what the service does not know; false if it says nothing of the kind.
    fn learn(&self, text: &str) -> bool {
        let mut dialect = self.dialect.get();
        let long_name = !dialect.long_name && text.contains("max_completion_tokens");
        let ends_early = !dialect.ends_early
            && ["min_tokens", "ignore_eos"]
                .iter()
                .any(|name| text.contains(name));
        dialect.long_name |= long_name;
        dialect.ends_early |= ends_early;
        self.dialect.set(dialect);
        long_name || ends_early
    }

    fn completion(&self, answer: &Value, seconds: f64) -> Result<Completion, EndpointError> {
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
            _ => Err(self.refused(format!(
                "no `usage` with token counts in the answer: {}",
                shortened(&answer.to_string())
            ))),
        }
    }

    /// Status, seconds to wait where it is too busy, and content.
    fn post(&self, body: &str) -> Result<(u16, u64, String), EndpointError> {
        let call = match self.call {
            Call::Completions => "completions",
            Call::Chat => "chat/completions",
        };
        let failed = |source| EndpointError::Connection {
            url: self.url.clone(),
            source: Box::new(source),
        };
        let mut request = self
            .agent
            .post(format!("{}/{call}", self.url))
            .header("Content-Type", "application/json")
            .header("Accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.send(body).map_err(failed)?;
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .unwrap_or(1);
        let status = response.status().as_u16();
        let content = response
            .body_mut()
            .with_config()
            .limit(MOST)
            .read_to_vec()
            .map_err(failed)?;
        Ok((status, wait, String::from_utf8_lossy(&content).into_owned()))
    }

    /// What is wrong with an answer.
    pub(crate) fn refused(&self, reason: String) -> EndpointError {
        // Some services repeat the key in their complaint.
        let key = self
            .authorization
            .as_deref()
            .and_then(|a| a.strip_prefix("Bearer "));
        EndpointError::Answer {
            url: self.url.clone(),
            reason: key.map_or_else(|| reason.clone(), |key| reason.replace(key, "[key]")),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
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
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ")
                    {
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
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
                )
                .unwrap();
            }
        });
        format!("http://{address}/v1")
    }

    #[test]
    fn the_times_of_a_local_service_are_found_again() {
        let (prompts, outputs, trials) = ([1, 10, 20], [1, 4, 8], 4);
        let endpoint = plain(&service(prompts.len() * outputs.len() * trials));
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

    fn plain(url: &str) -> Endpoint {
        Endpoint::new(url, "m", Call::Completions, None).unwrap()
    }

    /// A service that answers each request by the next of these texts; gives back what was asked.
    fn answering(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for text in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut seen = vec![0; 1 << 16];
                let mut request = String::new();
                while !request.contains("\r\n\r\n{") {
                    let n = stream.read(&mut seen).unwrap();
                    request += &String::from_utf8_lossy(&seen[..n]);
                }
                stream.write_all(text.as_bytes()).unwrap();
                asked.push(request);
            }
            asked
        });
        (url, service)
    }

    fn response(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
    }

    const USAGE: &str = r#"{"usage":{"prompt_tokens":2,"completion_tokens":3}}"#;

    #[test]
    fn answers_of_other_kinds_are_named() {
        let address = |url: &str, key: Option<&str>| {
            let endpoint = Endpoint::new(url, "m", Call::Completions, key);
            endpoint.map(|_| ()).unwrap_err().to_string()
        };
        assert!(address("ftp://example.org/v1", None).contains("http:// and https://"));
        assert!(address("http:///v1", None).contains("no host"));
        assert!(address("https://me:word@example.org/v1", None).contains("passwords"));
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(plain(&format!("http://{closed}")).complete(1, 1).is_err());
        let error = |answer: String| {
            let (url, _service) = answering(vec![answer]);
            plain(&url).complete(1, 1).unwrap_err().to_string()
        };
        let found = error(response("404 Not Found", "", "nothing"));
        assert!(found.contains("status 404: nothing"), "{found}");
        assert!(error(response("200 OK", "", "{}")).contains("usage"));
        // A redirection is named and not followed.
        let moved = response("301 Moved", "Location: http://example.org/\r\n", "gone");
        assert!(error(moved).contains("status 301"));
        assert!(!error("hello\r\n\r\n".into()).is_empty());
    }

    #[test]
    fn an_api_key_is_sent_and_never_in_the_open_or_in_messages() {
        let (url, service) = answering(vec![
            response("200 OK", "", USAGE),
            response("401 Unauthorized", "", "bad key sk-secret1"),
        ]);
        let endpoint = Endpoint::new(&url, "m", Call::Completions, Some("sk-secret1")).unwrap();
        let done = endpoint.complete(2, 3).unwrap();
        assert_eq!((done.prompt_tokens, done.completion_tokens), (2, 3));
        let error = endpoint.complete(2, 3).unwrap_err().to_string();
        assert!(
            error.contains("status 401") && !error.contains("sk-secret1"),
            "{error}"
        );
        let asked = service.join().unwrap();
        let header = "authorization: bearer sk-secret1";
        assert!(
            asked[0].to_ascii_lowercase().contains(header),
            "{}",
            asked[0]
        );
        let open = Endpoint::new("http://example.org/v1", "m", Call::Chat, Some("k"));
        assert!(open.unwrap_err().to_string().contains("in the open"));
        assert!(Endpoint::new("https://example.org/v1", "m", Call::Chat, Some("k")).is_ok());
        assert!(
            Endpoint::new("https://example.org/v1", "m", Call::Chat, Some("k\r\nX: y")).is_err()
        );
    }

    #[test]
    fn https_is_spoken_where_it_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/v1", listener.local_addr().unwrap());
        let service = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut first = [0; 3];
            stream.read_exact(&mut first).unwrap();
            first
        });
        assert!(plain(&url).complete(1, 1).is_err());
        // A TLS handshake record, not a request in the open.
        assert_eq!(service.join().unwrap()[..2], [0x16, 0x03]);
    }

    #[test]
    fn a_service_is_asked_in_the_words_that_it_knows() {
        let refusal = |body: &str| response("400 Bad Request", "", body);
        let (url, service) = answering(vec![
            refusal(
                r#"{"error":{"message":"Unrecognized request argument supplied: ignore_eos"}}"#,
            ),
            refusal(r#"{"error":{"message":"Use 'max_completion_tokens' instead."}}"#),
            response("429 Too Many Requests", "Retry-After: 0\r\n", "{}"),
            response("200 OK", "", USAGE),
            refusal("no such model"),
        ]);
        let endpoint = Endpoint::new(&url, "m", Call::Chat, None).unwrap();
        endpoint.complete(2, 3).unwrap();
        let error = endpoint.complete(2, 3).unwrap_err().to_string();
        assert!(error.contains("no such model"), "{error}");
        let asked = service.join().unwrap();
        let body = |i: usize| -> Value {
            serde_json::from_str(asked[i].split_once("\r\n\r\n").unwrap().1).unwrap()
        };
        assert!(
            asked[0].starts_with("POST /v1/chat/completions"),
            "{}",
            asked[0]
        );
        assert!(body(0)["ignore_eos"] == true && body(0)["max_tokens"] == 3);
        assert!(body(1)["ignore_eos"].is_null() && body(1)["max_tokens"] == 3);
        assert!(body(2)["max_completion_tokens"] == 3 && body(2)["max_tokens"].is_null());
        assert_eq!(body(3)["messages"][0]["content"], "time time");
        assert_eq!(body(4), body(3));
    }
}
