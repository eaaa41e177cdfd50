//! Real sockets between threads.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::prelude::*;
use frugal_nn::{GradientSum, Parameter};

use super::collective::part;
use super::*;
use crate::config::TrainConfig;
use crate::optim::{SavedTensor, made};

/// Nobody asks to stop.
static GO_ON: AtomicBool = AtomicBool::new(false);

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn patience() -> Patience {
    Patience {
        join: Duration::from_secs(5),
        message: Duration::from_secs(5),
    }
}

fn identity(world: usize) -> RunIdentity {
    RunIdentity {
        world,
        secret: b"secret".to_vec(),
        config: [7; 32],
    }
}

/// Runs `work` on every rank.
fn on_all<T: Send>(world: usize, work: impl Fn(TcpGroup) -> T + Sync) -> Vec<T> {
    let listener = listen(HERE).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        let (work, address, listener) = (&work, &address, &listener);
        let others: Vec<_> = (1..world)
            .map(|rank| {
                scope.spawn(move || {
                    let group = TcpGroup::join(address, rank, &identity(world), patience(), &GO_ON);
                    work(group.unwrap())
                })
            })
            .collect();
        let host = TcpGroup::host(listener, &identity(world), patience(), &GO_ON, || Ok(()));
        let first = work(host.unwrap());
        let others = others.into_iter().map(|other| other.join().unwrap());
        std::iter::once(first).chain(others).collect()
    })
}

fn values(rank: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 31 + rank * 17) % 97) as f32 * 0.37 - 11.0 + rank as f32 * 1e-4)
        .collect()
}

#[test]
fn sums_are_the_same_bits_on_every_rank_and_in_every_run() {
    for (world, len) in [(2, 1000), (3, 1000), (4, 1001), (4, 3), (3, 0)] {
        let run = || {
            on_all(world, |mut group| {
                // Late ranks change nothing.
                std::thread::sleep(Duration::from_millis(7 * (group.rank() as u64 % 2)));
                let mut sum = values(group.rank(), len);
                group.all_reduce(&mut sum, "testing").unwrap();
                sum
            })
        };
        let (first, second) = (run(), run());
        let bits = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for sum in first.iter().chain(&second) {
            assert_eq!(bits(sum), bits(&first[0]));
        }
        for (i, sum) in first[0].iter().enumerate() {
            let exact: f64 = (0..world).map(|r| f64::from(values(r, len)[i])).sum();
            assert!((f64::from(*sum) - exact).abs() < 1e-4, "{sum} {exact}");
        }
    }
}

/// `2(N−1)/N` of a million values of four bytes: 1.5 million values.
#[test]
fn a_ring_of_four_sends_one_and_a_half_times_the_data() {
    let sent = on_all(4, |mut group| {
        let before = group.bytes_sent();
        group
            .all_reduce(&mut vec![1.0; 1_000_000], "testing")
            .unwrap();
        group.bytes_sent() - before
    });
    assert_eq!(sent, [6_000_000; 4]);
}

#[test]
fn every_collective_gives_what_its_name_says() {
    on_all(3, |mut group| {
        let rank = group.rank();
        let own = vec![rank as u8; rank];
        let all = group.all_gather(&own, 2, "testing").unwrap();
        assert_eq!(all, [vec![], vec![1], vec![2, 2]]);
        let said = group.broadcast(1, own.clone(), 10, "testing").unwrap();
        assert_eq!(said, [1]);
        let all = group.gather(2, own, 10, "testing").unwrap();
        assert_eq!(all.len(), if rank == 2 { 3 } else { 0 });
        let mut values = vec![1.0, 2.0, 3.0, 4.0];
        let range = group.reduce_scatter(&mut values, "testing").unwrap();
        for i in range {
            assert_eq!(values[i], 3.0 * (i + 1) as f32);
        }
        let neighbour = (rank + 1) % 3;
        if rank == 0 {
            group.send(1, b"hello", "testing").unwrap();
        } else if rank == 1 {
            assert_eq!(group.receive(0, 5, "testing").unwrap(), b"hello");
        }
        let from = group
            .exchange_any(neighbour, &[rank as u8], (rank + 2) % 3, 1, "testing")
            .unwrap();
        assert_eq!(from, [((rank + 2) % 3) as u8]);
    });
}

#[test]
fn a_rank_that_is_gone_or_gives_up_is_named() {
    let said = on_all(3, |mut group| {
        if group.rank() == 2 {
            return String::new();
        }
        let mut values = vec![0.0; 10];
        let error = group.all_reduce(&mut values, "summing").unwrap_err();
        group.abort(&error.to_string());
        error.to_string()
    });
    assert!(
        said[0].contains("rank 2") || said[1].contains("rank 2"),
        "{said:?}"
    );
    assert!(
        said.iter().take(2).all(|text| text.contains("rank 2")),
        "{said:?}"
    );
    let said = on_all(2, |mut group| {
        if group.rank() == 1 {
            group.abort("the disk is full");
            return String::new();
        }
        group.receive(1, 10, "waiting").unwrap_err().to_string()
    });
    assert_eq!(said[0], "rank 1 ended the run: the disk is full");
    let said = on_all(2, |mut group| {
        if group.rank() == 1 {
            group.send(0, &[0; 11], "waiting").unwrap();
            return String::new();
        }
        group.receive(1, 10, "waiting").unwrap_err().to_string()
    });
    assert!(said[0].contains("11 bytes"), "{said:?}");
}

#[test]
fn a_rank_that_says_nothing_is_not_waited_for_for_ever() {
    let short = Patience {
        message: Duration::from_millis(200),
        ..patience()
    };
    let listener = listen(HERE).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = std::thread::scope(|scope| {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let group = TcpGroup::join(&address, 1, &identity(2), patience(), &GO_ON).unwrap();
            let _ = wait.recv();
            drop(group);
        });
        let mut group = TcpGroup::host(&listener, &identity(2), short, &GO_ON, || Ok(())).unwrap();
        let error = group.receive(1, 1, "waiting").unwrap_err().to_string();
        drop(done);
        error
    });
    assert!(
        error.contains("rank 1") && error.contains("said nothing"),
        "{error}"
    );
}

/// What rank 0 and one other process say of each other.
fn meet(other: &RunIdentity, rank: usize) -> (Result<TcpGroup, ParallelError>, String) {
    let listener = listen(HERE).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let short = Patience {
        join: Duration::from_millis(600),
        ..patience()
    };
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| TcpGroup::join(&address, rank, other, short, &GO_ON));
        let host = TcpGroup::host(&listener, &identity(2), short, &GO_ON, || Ok(()));
        let said = match joined.join().unwrap() {
            Ok(_) => "let in".to_owned(),
            Err(error) => error.to_string(),
        };
        (host, said)
    })
}

#[test]
fn only_processes_of_the_same_run_are_let_in() {
    let (host, said) = meet(&identity(2), 1);
    assert_eq!((host.unwrap().world(), said.as_str()), (2, "let in"));
    let secret = RunIdentity {
        secret: b"guessed".to_vec(),
        ..identity(2)
    };
    let (host, said) = meet(&secret, 1);
    assert!(said.contains("secret"), "{said}");
    // A stranger does not end the run: rank 1 is waited for.
    let host = host.unwrap_err().to_string();
    assert!(host.contains("rank 1 did not come"), "{host}");
    let config = RunIdentity {
        config: [8; 32],
        ..identity(2)
    };
    let (host, said) = meet(&config, 1);
    let host = host.unwrap_err().to_string();
    assert!(
        said.contains("settings") && host.contains("settings"),
        "{said} {host}"
    );
    let (host, said) = meet(&identity(3), 2);
    let host = host.unwrap_err().to_string();
    assert!(
        said.contains("3 processes") && host.contains("rank 2"),
        "{said} {host}"
    );
    let alone = TcpGroup::join("127.0.0.1:1", 2, &identity(2), patience(), &GO_ON);
    assert!(alone.unwrap_err().to_string().contains("rank 2 of 2"));
}

#[test]
fn noise_on_the_port_does_not_disturb_a_run() {
    let listener: TcpListener = listen(HERE).unwrap();
    let address = listener.local_addr().unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut noise = TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut noise, &[b'x'; 200]).unwrap();
            let text = address.to_string();
            TcpGroup::join(&text, 1, &identity(2), patience(), &GO_ON).unwrap();
        });
        TcpGroup::host(&listener, &identity(2), patience(), &GO_ON, || Ok(())).unwrap();
    });
    assert!(started.elapsed() < Duration::from_secs(5));
}

fn parameter(name: &str, len: usize) -> Parameter {
    Parameter::new(name, &[len], vec![0.0; len], &Device::flex())
}

#[test]
fn owners_are_balanced_by_size_and_take_their_own_state() {
    let sizes = [
        ("a.w", 70),
        ("w", 50),
        ("b.w", 30),
        ("c", 20),
        ("d", 10),
        ("e", 10),
    ];
    let shares = on_all(2, |group| {
        let mut group = Group::new(group, Layout::data(2, 1)).unwrap();
        let parameters: Vec<Parameter> = sizes.iter().map(|(n, s)| parameter(n, *s)).collect();
        let all: Vec<&Parameter> = parameters.iter().collect();
        group.assign(&all, |_| vec![0]);
        let optimizer = made(&TrainConfig::default()).unwrap();
        let report = group.report(&all, optimizer.as_ref()).unwrap();
        // 190 values of two moments of four bytes, 95 on each rank by hand: 70+20(+...), 50+30+...
        let sum: u64 = report.optimizer_bytes.iter().sum();
        assert_eq!(sum, 190 * 8);
        let difference = report.optimizer_bytes[0].abs_diff(report.optimizer_bytes[1]);
        assert!(difference <= 10 * 8, "{report:?}");
        let state = sizes.map(|(name, _)| (format!("exp_avg.{name}"), SavedTensor::Count(1)));
        let own = group.own_state(state.into_iter().collect());
        let names: Vec<&str> = sizes.iter().map(|(name, _)| *name).collect();
        for name in names {
            let has = own.contains_key(&format!("exp_avg.{name}"));
            assert_eq!(has, group.owns(name), "{name}");
        }
        own.len()
    });
    assert_eq!(shares.iter().sum::<usize>(), sizes.len());
    assert!(shares.iter().all(|n| *n > 0));
}

#[test]
fn rows_are_shared_by_tokens_and_each_once() {
    let rows: Vec<u32> = (0..17).collect();
    let tokens = |row: u32| 1 + (row as usize * 7) % 13;
    for world in [2, 3, 4] {
        let shares = on_all(world, |group| {
            let group = Group::new(group, Layout::data(world, 0)).unwrap();
            assert!(group.share(&[], tokens).is_empty());
            // A single row is one rank's.
            let single = group.share(&[3], tokens).len();
            (group.share(&rows, tokens).to_vec(), single)
        });
        let all: Vec<u32> = shares.iter().flat_map(|(rows, _)| rows.clone()).collect();
        assert_eq!(all, rows);
        assert_eq!(shares.iter().map(|(_, single)| single).sum::<usize>(), 1);
        let sums: Vec<usize> = shares
            .iter()
            .map(|(rows, _)| rows.iter().map(|&row| tokens(row)).sum())
            .collect();
        let (low, high) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
        assert!(high - low <= 13, "{sums:?}");
    }
}

#[test]
fn a_gradient_that_only_one_rank_has_counts() {
    on_all(3, |group| {
        let mut group = Group::new(group, Layout::data(3, 0)).unwrap();
        let rank = group.rank();
        let parameters = [
            ("a".to_owned(), 2),
            ("b".to_owned(), 3),
            ("c".to_owned(), 1),
        ];
        let mut gradients = GradientSum::default();
        gradients.insert("a", vec![rank as f32, 1.0]);
        if rank == 1 {
            gradients.insert("b", vec![1.0, 2.0, 3.0]);
        }
        let loss = group
            .sum_gradients(0.5 + rank as f64, &parameters, &mut gradients)
            .unwrap();
        assert_eq!(loss, 4.5);
        assert_eq!(gradients.get("a"), Some([3.0, 3.0].as_slice()));
        assert_eq!(gradients.get("b"), Some([1.0, 2.0, 3.0].as_slice()));
        // Nobody has one: it stays without, and the optimizer leaves it alone.
        assert_eq!(gradients.get("c"), None);
    });
}

#[test]
fn parts_of_a_ring_cover_everything() {
    for (len, parts) in [(10, 3), (2, 4), (0, 2)] {
        let all: Vec<usize> = (0..parts).flat_map(|i| part(len, parts, i)).collect();
        assert_eq!(all, (0..len).collect::<Vec<_>>());
    }
}

/// The request was looked at once training had begun: until then only a second one ended the process.
#[test]
fn a_request_to_stop_was_not_heard_while_others_were_awaited() {
    let listener = listen(HERE).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let patient = Patience {
        join: Duration::from_secs(300),
        ..patience()
    };
    let nowhere = {
        let gone = listen(HERE).unwrap();
        gone.local_addr().unwrap().to_string()
    };
    let (stop, ids) = (AtomicBool::new(false), identity(3));
    std::thread::scope(|scope| {
        // Rank 2 never comes: rank 0 waits for it, rank 1 for the addresses, and one for rank 0.
        let waiting = [
            scope.spawn(|| TcpGroup::host(&listener, &ids, patient, &stop, || Ok(()))),
            scope.spawn(|| TcpGroup::join(&address, 1, &ids, patient, &stop)),
            scope.spawn(|| TcpGroup::join(&nowhere, 1, &ids, patient, &stop)),
        ];
        std::thread::sleep(Duration::from_millis(300));
        assert!(waiting.iter().all(|rank| !rank.is_finished()));
        stop.store(true, Ordering::SeqCst);
        for (i, rank) in waiting.into_iter().enumerate() {
            let error = rank.join().unwrap().unwrap_err();
            // Rank 1 may see first that rank 0 is gone.
            let gone = i == 1 && matches!(error, ParallelError::Lost { .. });
            assert!(gone || matches!(error, ParallelError::Stopped), "{error}");
        }
    });
}

/// The sums of stage 1, each on its owner alone: `all_reduce` is what they are compared with.
#[test]
fn gradients_that_are_reduced_to_their_owners_have_the_bits_of_the_ring() {
    let sizes = [("a", 70), ("b", 33), ("c", 20), ("d", 1), ("e", 0)];
    for world in [2, 3, 4] {
        let kept = on_all(world, |group| {
            let mut group = Group::new(group, Layout::data(world, 2)).unwrap();
            let rank = group.rank();
            let parameters = sizes.map(|(name, len)| parameter(name, len));
            group.assign(&parameters.each_ref(), |_| vec![0]);
            let sizes = sizes.map(|(name, len)| (name.to_owned(), len));
            let gradients = || {
                let mut gradients = GradientSum::default();
                for (i, (name, len)) in sizes.iter().enumerate() {
                    gradients.insert(name, values(rank + 7 * i, *len));
                }
                gradients
            };
            let (mut whole, mut own, mut kept) = (gradients(), gradients(), GradientSum::default());
            group.sum_gradients(0.0, &sizes, &mut whole).unwrap();
            let loss = group.reduce_gradients(1.5, &sizes, &mut own, &mut kept);
            assert_eq!(loss.unwrap(), 1.5 * world as f64);
            assert_eq!(own.iter().count(), 0, "what is reduced is let go of");
            for (name, _) in &sizes {
                let expected = group.owns(name).then(|| whole.get(name).unwrap());
                assert_eq!(kept.get(name), expected, "{name}");
            }
            // The squares of all, on all.
            let squares = crate::optim::squares(&kept);
            let all = group.all_squares(squares, &sizes).unwrap();
            assert_eq!(all, crate::optim::squares(&whole));
            // A second micro-batch is added.
            let mut own = gradients();
            group
                .reduce_gradients(0.0, &sizes, &mut own, &mut kept)
                .unwrap();
            for (name, values) in kept.iter() {
                let twice = whole.get(name).unwrap().iter().map(|v| 2.0 * v);
                assert_eq!(values, twice.collect::<Vec<f32>>());
            }
            kept.iter().count()
        });
        assert_eq!(kept.iter().sum::<usize>(), sizes.len());
    }
}

/// Two stages of two replicas, and what the first and the last share.
#[test]
fn stages_sum_and_gather_among_those_that_compute_with_a_parameter() {
    let layout = Layout {
        data: 2,
        pipeline: 2,
        micro_batches: 1,
        zero: 1,
    };
    on_all(4, |group| {
        let mut group = Group::new(group, layout).unwrap();
        let rank = group.rank();
        let mut parameters =
            [("first", 2), ("last", 3), ("tied", 1)].map(|(n, len)| parameter(n, len));
        group.assign(&parameters.each_ref(), |name| match name {
            "first" => vec![0],
            "last" => vec![1],
            _ => vec![0, 1],
        });
        let sizes = parameters
            .each_ref()
            .map(|p| (p.name().to_owned(), p.len()));
        let own = if rank.is_multiple_of(2) {
            "first"
        } else {
            "last"
        };
        let len = if rank.is_multiple_of(2) { 2 } else { 3 };
        let mut gradients = GradientSum::default();
        gradients.insert(own, vec![1.0 + rank as f32; len]);
        gradients.insert("tied", vec![10.0 * (1 + rank) as f32]);
        group.sum_gradients(0.0, &sizes, &mut gradients).unwrap();
        // Ranks 0 and 2 are the first stage, 1 and 3 the last.
        let sum = if rank.is_multiple_of(2) { 4.0 } else { 6.0 };
        assert_eq!(gradients.get(own), Some(vec![sum; len].as_slice()));
        assert_eq!(gradients.get("tied"), Some([100.0].as_slice()));
        for parameter in parameters.iter_mut().filter(|p| group.owns(p.name())) {
            parameter.set(vec![5.0 + parameter.len() as f32; parameter.len()]);
        }
        group
            .gather_parameters(parameters.iter_mut().collect())
            .unwrap();
        for parameter in &parameters {
            let expected = match group.keeps(parameter.name()) {
                true => 5.0 + parameter.len() as f32,
                false => 0.0,
            };
            assert_eq!(parameter.to_vec(), vec![expected; parameter.len()]);
        }
    });
}
