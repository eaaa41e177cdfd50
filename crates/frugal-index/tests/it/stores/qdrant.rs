//! Qdrant by its documented protocol, replayed: no server of it is started.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use frugal_index::Metric;
use frugal_index::store::{StoreOptions, StoreTarget, open_store};
use serde_json::{Value, json};

use super::{entry, settings, vector};

/// One request that is expected, and its answer.
type Exchange = (&'static str, &'static str, u16, Value);

/// Answers requests in this order; gives back their bodies.
fn replay(exchanges: Vec<Exchange>) -> (String, JoinHandle<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("qdrant+http://{}#papers", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut bodies = Vec::new();
        for (method, path, status, answer) in exchanges {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(
                line.starts_with(&format!("{method} {path} ")),
                "{line} {path}"
            );
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                let lower = header.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            bodies.push(serde_json::from_slice(&body).unwrap_or(Value::Null));
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                answer.len()
            );
            reader
                .get_mut()
                .write_all((head + &answer).as_bytes())
                .unwrap();
        }
        bodies
    });
    (address, thread)
}

fn ok(result: Value) -> Value {
    json!({ "usage": null, "time": 0.001, "status": "ok", "result": result })
}

#[test]
fn qdrant_is_spoken_to_as_documented() {
    let document = serde_json::to_string(&entry(1).document).unwrap();
    let payload = json!({ "id": entry(1).document.id, "document": document });
    let point = json!({ "id": "5c1f", "version": 3, "score": 0.25, "payload": payload });
    let missing = json!({ "status": { "error": "Not found: Collection `papers` doesn't exist!" } });
    let (address, thread) = replay(vec![
        ("GET", "/collections/papers", 404, missing),
        ("PUT", "/collections/papers", 200, ok(json!(true))),
        (
            "PUT",
            "/collections/papers/points?wait=true",
            200,
            ok(json!({ "operation_id": 0, "status": "completed" })),
        ),
        (
            "POST",
            "/collections/papers/points/count",
            200,
            ok(json!({ "count": 2 })),
        ),
        (
            "POST",
            "/collections/papers/points/query",
            200,
            ok(json!({ "points": [point] })),
        ),
        (
            "POST",
            "/collections/papers/points/scroll",
            200,
            ok(json!({ "points": [point], "next_page_offset": "7a" })),
        ),
        (
            "POST",
            "/collections/papers/points/scroll",
            200,
            ok(json!({ "points": [point], "next_page_offset": null })),
        ),
        (
            "POST",
            "/collections/papers/points",
            200,
            ok(json!([point])),
        ),
        (
            "POST",
            "/collections/papers/points/delete?wait=true",
            200,
            ok(json!({ "operation_id": 1, "status": "completed" })),
        ),
    ]);
    let target: StoreTarget = address.parse().unwrap();
    let wanted = settings(Metric::Cosine);
    let mut store = open_store(&target, Some(&wanted), StoreOptions::default()).unwrap();
    store.upsert(&[entry(1), entry(2)]).unwrap();
    assert_eq!(store.count().unwrap(), 2);
    let found = store.nearest(&vector(5), 3).unwrap();
    assert_eq!((found.len(), found[0].score), (1, 0.25));
    assert_eq!(found[0].document, entry(1).document);
    let id = entry(1).document.id;
    assert_eq!(store.ids().unwrap(), [id.clone(), id.clone()]);
    let documents = store.documents(&[id.clone(), "x".into()]).unwrap();
    assert_eq!(documents, [Some(entry(1).document), None]);
    store.delete(&[id]).unwrap();
    let bodies = thread.join().unwrap();
    assert_eq!(
        bodies[1]["vectors"],
        json!({ "size": 12, "distance": "Cosine" })
    );
    let points = bodies[2]["points"].as_array().unwrap();
    // From the identifier's SHA-256 by `sha256sum`, with the marks of version 8.
    assert_eq!(points[0]["id"], "e45873c0-8e32-89e8-80dc-0a8434a7248d");
    assert_eq!(points[0]["id"], bodies[8]["points"][0]);
    assert_eq!(bodies[4]["limit"], 3);
    assert_eq!(bodies[6]["offset"], "7a");
}

#[test]
fn a_qdrant_collection_of_another_model_or_program_is_refused() {
    let text = serde_json::to_string(&settings(Metric::Ip)).unwrap();
    let of = |metadata: Value| ok(json!({ "status": "green", "config": { "metadata": metadata } }));
    for (metadata, part) in [
        (
            json!({ "frugal_settings": text }),
            "it was made with `test`",
        ),
        (json!(null), "not made by `frugal index`"),
    ] {
        let (address, thread) = replay(vec![("GET", "/collections/papers", 200, of(metadata))]);
        let target: StoreTarget = address.parse().unwrap();
        let wanted = settings(Metric::Cosine);
        let error = open_store(&target, Some(&wanted), StoreOptions::default());
        let error = error.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        thread.join().unwrap();
    }
}
