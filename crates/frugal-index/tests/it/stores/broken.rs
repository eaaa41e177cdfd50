//! Servers that are down, slow, or talk nonsense.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use frugal_index::Metric;
use frugal_index::store::{StoreOptions, StoreTarget, open_store};

use super::settings;

fn message(address: &str, options: StoreOptions) -> (String, Duration) {
    let target: StoreTarget = address.parse().unwrap();
    let begin = Instant::now();
    let error = open_store(&target, Some(&settings(Metric::Cosine)), options);
    let error = error.map(|_| ()).unwrap_err().to_string();
    (error, begin.elapsed())
}

fn quick() -> StoreOptions {
    StoreOptions {
        timeout: Duration::from_millis(700),
        attempts: 2,
    }
}

fn addresses(port: u16) -> [String; 3] {
    [
        format!("postgres://me:hidden@127.0.0.1:{port}/db"),
        format!("chroma+http://127.0.0.1:{port}"),
        format!("qdrant+http://127.0.0.1:{port}"),
    ]
}

#[test]
fn a_store_that_is_down_gives_one_clear_message() {
    // The port of a listener that is gone.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for address in addresses(port) {
        let (error, time) = message(&address, quick());
        assert!(error.contains("cannot be reached"), "{error}");
        assert!(
            !error.contains("hidden") && !error.contains('\n'),
            "{error}"
        );
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

#[test]
fn a_store_that_says_nothing_is_not_waited_for_forever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    for address in addresses(port) {
        let (error, time) = message(&address, quick());
        assert!(error.contains("no answer within 0.7 s"), "{error}");
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

#[test]
fn a_server_of_another_kind_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let page = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>";
            let _ = stream.write_all(page.as_bytes());
        }
    });
    for address in addresses(port) {
        let (error, _) = message(&address, quick());
        let known = ["cannot be read", "cannot be reached", "was not made by"];
        assert!(known.iter().any(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn an_overloaded_server_is_asked_again_and_then_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, counted) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy";
            let _ = stream.write_all(busy.as_bytes());
            let _ = count.send(());
        }
    });
    let options = StoreOptions {
        attempts: 3,
        timeout: Duration::from_secs(5),
    };
    let (error, _) = message(&addresses(port)[1], options);
    assert!(error.contains("status 503: busy"), "{error}");
    assert_eq!(counted.try_iter().count(), 3);
}
