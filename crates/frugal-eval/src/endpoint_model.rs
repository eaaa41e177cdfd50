//! A service that speaks OpenAI's protocol, as the evaluation harness sees a model. It writes texts;
//! log-likelihoods of given texts are not part of the protocol.

use std::time::{Duration, Instant};

use frugal_core::data::Message;
use serde_json::{Value, json};

use crate::endpoint::{Call, Dialect, Endpoint, EndpointError};
use crate::tasks::{
    Continuations, Generation, LanguageModel, ModelFailure, Sink, ToContinue, Written,
};

/// Times that a request is sent at most where the connection breaks.
const TRIES: u32 = 4;
/// Longest time after which it is sent again.
const PATIENCE: Duration = Duration::from_secs(300);
/// Stop texts that the protocol allows; the others are looked for here.
const STOPS: usize = 4;

/// A service as a model.
#[derive(Debug)]
pub struct EndpointModel {
    endpoint: Endpoint,
    fingerprint: String,
}

impl EndpointModel {
    /// A service at a base address. In chat, contexts are conversations, which the service writes
    /// by its own template. An API key is sent as `Bearer` token.
    ///
    /// # Errors
    /// Addresses and keys that cannot be used.
    pub fn new(
        url: &str,
        model: &str,
        call: Call,
        key: Option<&str>,
    ) -> Result<Self, EndpointError> {
        Ok(Self {
            endpoint: Endpoint::new(url, model, call, key)?,
            fingerprint: format!("{model} at {url}, chat {}", call == Call::Chat),
        })
    }

    /// A request without the name of its longest answer, which depends on the service.
    fn body(
        &self,
        context: &str,
        seed: u64,
        generation: &Generation,
    ) -> Result<Value, ModelFailure> {
        let mut body = json!({
            "model": self.endpoint.model(),
            "temperature": generation.temperature,
            // JSON's numbers hold 53 bits everywhere.
            "seed": seed >> 11,
            "stream": false,
        });
        let stops: Vec<&String> = generation.until.iter().take(STOPS).collect();
        if !stops.is_empty() {
            body["stop"] = json!(stops);
        }
        let draws = generation.temperature > 0.0;
        if generation.repetition_penalty != 1.0 || draws && generation.min_p > 0.0 {
            return Err(
                "`repetition_penalty` and `min_p` are not part of the service's protocol".into(),
            );
        }
        if draws && generation.top_k > 0 {
            return Err(format!(
                "the task draws among the {} likeliest tokens, which is not part of the service's protocol; `--gen-kwargs top_k=0` draws among all",
                generation.top_k
            )
            .into());
        }
        if draws && generation.top_p < 1.0 {
            body["top_p"] = json!(generation.top_p);
        }
        match self.endpoint.call() {
            Call::Completions => body["prompt"] = json!(context),
            Call::Chat => {
                body["messages"] = serde_json::from_str(context)
                    .map_err(|_| "the task begins the answer itself (`gen_prefix`), which a chat service does not allow; leave out `--apply-chat-template`")?;
            }
        }
        Ok(body)
    }

    /// Sends a request until it is answered, a few times at most.
    fn ask(&self, body: &Value, longest: usize) -> Result<String, EndpointError> {
        let of_dialect = |dialect: Dialect| {
            let mut body = body.clone();
            body[dialect.longest()] = json!(longest);
            body
        };
        let (begin, mut tried) = (Instant::now(), 0);
        loop {
            tried += 1;
            match self.endpoint.ask(&of_dialect) {
                Ok((answer, _)) => return self.text(&answer),
                Err(EndpointError::Connection { .. })
                    if tried < TRIES && begin.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_millis(250) * 4_u32.pow(tried - 1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn text(&self, answer: &Value) -> Result<String, EndpointError> {
        let choice = &answer["choices"][0];
        let text = match self.endpoint.call() {
            Call::Completions => &choice["text"],
            Call::Chat => &choice["message"]["content"],
        };
        match text {
            Value::String(text) => Ok(text.clone()),
            // A model that says nothing.
            Value::Null if choice.is_object() => Ok(String::new()),
            _ => {
                let shown: String = answer.to_string().chars().take(200).collect();
                let reason = format!("no text in the answer: {shown}");
                Err(self.endpoint.refused(reason))
            }
        }
    }
}

/// The text up to the first stop text.
fn cut<'a>(text: &'a str, until: &[String]) -> &'a str {
    let ends = until.iter().filter_map(|stop| text.find(stop.as_str()));
    ends.min().map_or(text, |end| &text[..end])
}

const NO_LIKELIHOODS: &str = "a service gives no log-likelihoods of given texts, so only tasks that write text (`generate_until`) can be asked of it";

impl LanguageModel for EndpointModel {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn loglikelihood(
        &mut self,
        _: &[Continuations<'_>],
        _: Sink<'_, Vec<(f64, bool)>>,
    ) -> Result<(), ModelFailure> {
        Err(NO_LIKELIHOODS.into())
    }

    fn loglikelihood_rolling(
        &mut self,
        _: &[&str],
        _: Sink<'_, (f64, usize)>,
    ) -> Result<(), ModelFailure> {
        Err(NO_LIKELIHOODS.into())
    }

    fn generate_until(
        &mut self,
        requests: &[ToContinue<'_>],
        generation: &Generation,
        answer: Sink<'_, Written>,
    ) -> Result<(), ModelFailure> {
        for (i, request) in requests.iter().enumerate() {
            let body = self.body(request.context, request.seed, generation)?;
            let text = self.ask(&body, generation.max_tokens)?;
            if !answer(i, cut(&text, &generation.until).into()) {
                break;
            }
        }
        Ok(())
    }

    fn chat(&self, messages: &[Message]) -> Result<String, ModelFailure> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| json!({ "role": m.role, "content": m.content }))
            .collect();
        Ok(Value::from(messages).to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A service that gives these answers in turn and passes on what it was asked.
    fn service(answers: Vec<String>) -> (String, Receiver<(String, Value)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, asked) = channel();
        std::thread::spawn(move || {
            for (answer, stream) in answers.into_iter().zip(listener.incoming()) {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
                reader.read_line(&mut first).unwrap();
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
                sender
                    .send((first, serde_json::from_slice(&body).unwrap()))
                    .unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (url, asked)
    }

    fn ok(body: &Value) -> String {
        let body = body.to_string();
        format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn ask(model: &mut EndpointModel, context: &str) -> Result<String, String> {
        let generation = Generation {
            until: ["a", "b", "c", "d", "END"].map(str::to_owned).to_vec(),
            max_tokens: 5,
            ..Generation::default()
        };
        let mut text = String::new();
        let request = ToContinue {
            context,
            seed: u64::MAX,
        };
        model
            .generate_until(&[request], &generation, &mut |_, written| {
                text = written.text;
                true
            })
            .map_err(|e| e.to_string())?;
        Ok(text)
    }

    #[test]
    fn a_busy_service_is_asked_again_and_its_answer_cut() {
        let busy =
            "HTTP/1.1 503 Busy\r\nConnection: close\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
                .to_owned();
        let text = json!({ "choices": [{ "text": " 12 END more" }] });
        let (url, asked) = service(vec![busy, ok(&text)]);
        let mut model = EndpointModel::new(&url, "m", Call::Completions, None).unwrap();
        assert_eq!(ask(&mut model, "Q:").unwrap(), " 12 ");
        let (_, body) = asked.iter().nth(1).unwrap();
        assert_eq!(
            (
                &body["prompt"],
                &body["stop"],
                &body["max_tokens"],
                &body["temperature"]
            ),
            (
                &json!("Q:"),
                &json!(["a", "b", "c", "d"]),
                &json!(5),
                &json!(0.0)
            )
        );
        assert!(body["seed"].as_u64().unwrap() < 1 << 53);
    }

    #[test]
    fn conversations_go_to_the_chat_service() {
        let (url, asked) = service(vec![ok(
            &json!({ "choices": [{ "message": { "content": "7" } }] }),
        )]);
        let mut model = EndpointModel::new(&url, "m", Call::Chat, None).unwrap();
        let context = model.chat(&[Message::new("user", "3 + 4?")]).unwrap();
        assert_eq!(ask(&mut model, &context).unwrap(), "7");
        let (line, body) = asked.recv().unwrap();
        assert!(line.starts_with("POST /v1/chat/completions "));
        assert_eq!(
            body["messages"],
            json!([{ "role": "user", "content": "3 + 4?" }])
        );
        assert!(
            ask(&mut model, &(context + "Answer:"))
                .unwrap_err()
                .contains("gen_prefix")
        );
    }

    #[test]
    fn a_connection_that_breaks_is_made_again() {
        let text = json!({ "choices": [{ "text": "12" }] });
        let (url, asked) = service(vec![String::new(), ok(&text)]);
        let mut model = EndpointModel::new(&url, "m", Call::Completions, None).unwrap();
        assert_eq!(ask(&mut model, "Q:").unwrap(), "12");
        assert_eq!(asked.iter().count(), 2);
    }

    #[test]
    fn a_service_with_another_name_for_the_length_draws_as_the_task_says() {
        let complaint = "Use 'max_completion_tokens' instead.";
        let refusal = format!(
            "HTTP/1.1 400 No\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{complaint}",
            complaint.len()
        );
        let text = json!({ "choices": [{ "message": { "content": "12" } }] });
        let (url, asked) = service(vec![refusal, ok(&text)]);
        let mut model = EndpointModel::new(&url, "m", Call::Chat, Some("sk-1")).unwrap();
        let context = model.chat(&[Message::new("user", "Q")]).unwrap();
        assert_eq!(ask(&mut model, &context).unwrap(), "12");
        let (_, body) = asked.iter().nth(1).unwrap();
        assert_eq!(
            (
                &body["max_completion_tokens"],
                &body["max_tokens"],
                &body["temperature"]
            ),
            (&json!(5), &Value::Null, &json!(0.0))
        );
    }

    #[test]
    fn what_a_service_cannot_do_is_named() {
        let refused =
            "HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 3\r\n\r\nkey".to_owned();
        let (url, asked) = service(vec![refused, ok(&json!({}))]);
        let mut model = EndpointModel::new(&url, "m", Call::Completions, None).unwrap();
        assert!(
            ask(&mut model, "Q")
                .unwrap_err()
                .contains("status 401: key")
        );
        assert!(ask(&mut model, "Q").unwrap_err().contains("no text"));
        assert_eq!(asked.iter().count(), 2);
        let drawn = Generation {
            temperature: 1.0,
            top_k: 50,
            ..Generation::default()
        };
        let request = ToContinue {
            context: "Q",
            seed: 0,
        };
        let error = model.generate_until(&[request], &drawn, &mut |_, _| true);
        assert!(error.unwrap_err().to_string().contains("top_k=0"));
        let error = model
            .loglikelihood_rolling(&[""], &mut |_, _| true)
            .unwrap_err();
        assert!(error.to_string().contains("generate_until"));
    }
}
