//! Sequences that an adapter takes up from a text on, over what the base computed before it.

use super::*;
use frugal::adapt::AdaptError;
use frugal::decode::DecodeError;

/// Settings of the tests have 30 for the invocation.
const CONTEXT: [u32; 4] = [3, 7, 1, 12];
const REQUEST: [u32; 3] = [30, 5, 9];

fn setup(name: &str) -> Setup {
    let backbone = backbone(name);
    let mut set = AdapterSet::default();
    for method in ["alora", "lora"] {
        let adapter = moved(method, backbone.as_ref());
        let head = None;
        set.insert(method, LoadedAdapter { adapter, head });
    }
    let adapters = Arc::new(set);
    Setup { backbone, adapters }
}

#[test]
fn an_invocation_over_the_context_of_the_base_computes_what_the_adapter_computes_of_all() {
    for name in ["llama", "gemma3_text", "phi3", "gpt2"] {
        let setup = setup(name);
        let (alora, base) = (one("alora"), ActiveAdapters::Base);
        let whole = [CONTEXT.as_slice(), &REQUEST].concat();
        let expected = setup.fresh(&alora, 8, &[&whole, &[2], &[60, 11]]);
        let of_base = setup.fresh(&base, 8, &[&whole, &[2], &[60, 11]]);
        for (with, without) in expected.iter().zip(&of_base) {
            assert!(max_difference(with, without) > 1e-2, "{name}");
        }
        // Before the invocation it is the base.
        assert_eq!(
            setup.fresh(&alora, 8, &[&CONTEXT]),
            setup.fresh(&base, 8, &[&CONTEXT])
        );

        let mut session = setup.session(8);
        let id = session.add(base.clone()).unwrap();
        append(&mut session, id, &[&CONTEXT]);
        let bytes = session.bytes();
        let fork = session.fork_with(id, alora.clone()).unwrap();
        assert_eq!(session.bytes(), bytes, "{name}: the context is held once");
        let found = append(&mut session, fork, &[&REQUEST, &[2], &[60, 11]]);
        for (found, expected) in found.iter().zip(&expected) {
            let worst = max_difference(found, expected);
            assert!(worst < 1e-4, "{name}: {worst:e}");
        }
        // Both go on in one pass, and the base's own is not touched.
        let both = session.append(&[(id, &[2]), (fork, &[8])]).unwrap();
        let alone = setup.fresh(&base, 8, &[&CONTEXT, &[2]]);
        assert!(max_difference(&both[0], &alone[1]) < 1e-4, "{name}");
        // Back to before the invocation it is the base's again.
        session.crop(fork, CONTEXT.len()).unwrap();
        let again = session.append_to(fork, &[2]).unwrap();
        assert!(max_difference(&again, &alone[1]) < 1e-4, "{name}");
    }
}

#[test]
fn an_adapter_that_acts_on_every_token_shares_no_context() {
    let setup = setup("llama");
    let mut session = setup.session(8);
    let refused = |found: Result<SequenceId, DecodeError>| match found {
        Err(DecodeError::Adapt(AdaptError::Unsupported { method, action, .. })) => {
            assert!(action.contains("share"), "{action}");
            method
        }
        other => panic!("{other:?}"),
    };
    let id = session.add(ActiveAdapters::Base).unwrap();
    append(&mut session, id, &[&CONTEXT]);
    assert_eq!(refused(session.fork_with(id, one("lora"))), "lora");
    let lora = session.add(one("lora")).unwrap();
    append(&mut session, lora, &[&CONTEXT]);
    assert_eq!(refused(session.fork_with(lora, one("alora"))), "lora");
    // One that has acted, too.
    let alora = session.add(one("alora")).unwrap();
    append(&mut session, alora, &[&REQUEST]);
    assert_eq!(
        refused(session.fork_with(alora, ActiveAdapters::Base)),
        "alora"
    );
    let unknown = session.fork_with(id, one("nobody")).unwrap_err();
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
    // Two at once cannot both wait.
    let parts = vec![("alora".to_owned(), 1.0), ("lora".to_owned(), 1.0)];
    assert!(session.add(ActiveAdapters::Combined(parts)).is_err());
}
