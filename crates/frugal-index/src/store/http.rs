//! JSON over HTTP, within a time and with a few attempts.

use serde_json::Value;
use ureq::{Agent, Error};

use super::StoreOptions;
use super::error::StoreError;

/// The longest answer that is read.
const LONGEST: u64 = 1 << 30;

/// A server.
pub(super) struct Http {
    place: String,
    base: String,
    agent: Agent,
    options: StoreOptions,
    /// Header and value that are sent along.
    header: Option<(&'static str, String)>,
}

/// An answer that is no failure of the server.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Http {
    pub(super) fn new(
        place: String,
        base: &str,
        options: StoreOptions,
        header: Option<(&'static str, String)>,
    ) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .build();
        Self {
            place,
            base: base.to_owned(),
            agent: config.into(),
            options,
            header,
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn answer(&self, problem: impl ToString) -> StoreError {
        StoreError::Answer {
            place: self.place.clone(),
            problem: problem.to_string(),
        }
    }

    /// Sends a request that can be repeated. Status 404 is an answer, every other failure an error.
    pub(super) fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let last = attempt >= self.options.attempts;
            match self.once(method, path, body) {
                Ok((status, _)) if matches!(status, 429 | 502..=504) && !last => {}
                Ok((status, bytes)) if status == 404 || (200..300).contains(&status) => {
                    let body = match bytes.is_empty() {
                        true => Value::Null,
                        false => serde_json::from_slice(&bytes)
                            .or_else(|e| {
                                if status == 404 {
                                    Ok(Value::Null)
                                } else {
                                    Err(e)
                                }
                            })
                            .map_err(|e| self.answer(e))?,
                    };
                    return Ok(Answer { status, body });
                }
                Ok((status, bytes)) => {
                    return Err(StoreError::Refused {
                        place: self.place.clone(),
                        problem: format!("status {status}: {}", said(&bytes)),
                    });
                }
                Err(Error::Timeout(_)) => {
                    return Err(StoreError::Timeout {
                        place: self.place.clone(),
                        seconds: self.options.timeout.as_secs_f64(),
                    });
                }
                Err(error) if last => {
                    return Err(StoreError::Unreachable {
                        place: self.place.clone(),
                        problem: error.to_string(),
                    });
                }
                Err(_) => {}
            }
            std::thread::sleep(StoreOptions::pause(attempt));
        }
    }

    /// As [`Http::call`] where 404 is a failure too.
    pub(super) fn get(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, StoreError> {
        let answer = self.call(method, path, body)?;
        match answer.status {
            404 => Err(StoreError::Refused {
                place: self.place.clone(),
                problem: format!("`{path}` is not there: was it deleted meanwhile?"),
            }),
            _ => Ok(answer.body),
        }
    }

    fn once(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Vec<u8>), Error> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("Content-Type", "application/json");
        if let Some((name, value)) = &self.header {
            request = request.header(*name, value);
        }
        let mut response = match body {
            Some(body) => self.agent.run(request.body(body.to_string())?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LONGEST);
        Ok((status, body.read_to_vec()?))
    }
}

/// What a server says of a failure, in one line of bearable length.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(300).collect();
    match short.is_empty() {
        true => "without a word".into(),
        false => short.chars().filter(|c| !c.is_control()).collect(),
    }
}
