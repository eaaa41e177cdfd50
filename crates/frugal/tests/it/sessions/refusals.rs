//! What a session, a generator or a state cannot do.

use std::sync::Arc;

use super::*;
use frugal::adapt::{AdaptError, NoAdapter};
use frugal::decode::DecodeError;
use frugal::model::{DecodeState, StateError};

/// An error, after which everything is as it was.
fn refused(session: &mut Session, new: &[(SequenceId, &[u32])]) -> DecodeError {
    let all: Vec<SequenceId> = session.sequences().collect();
    let before: Vec<Vec<u32>> = all
        .iter()
        .map(|id| session.tokens(*id).unwrap().to_vec())
        .collect();
    let (bytes, error) = (session.bytes(), session.append(new).unwrap_err());
    for (id, before) in all.iter().zip(before) {
        assert_eq!(session.tokens(*id).unwrap(), before);
    }
    assert_eq!(session.bytes(), bytes);
    error
}

#[test]
fn what_a_session_cannot_do_is_a_typed_error_that_changes_nothing() {
    for name in MODELS {
        let setup = Setup::new(name);
        let limit = setup.backbone.info().max_sequence;
        let mut session = setup.session(0);
        let id = session.add(one("lora")).unwrap();
        let other = session.add(ActiveAdapters::Base).unwrap();
        append(&mut session, id, &[&PROMPT]);
        let gone = session.add(ActiveAdapters::Base).unwrap();
        session.remove(gone).unwrap();
        let error = refused(&mut session, &[(id, &[1]), (gone, &[1])]);
        assert!(matches!(error, DecodeError::UnknownSequence { id } if id == gone));
        let error = refused(&mut session, &[(id, &[])]);
        assert!(matches!(error, DecodeError::NothingToAppend { .. }));
        let error = refused(&mut session, &[(id, &[1]), (other, &[2]), (id, &[3])]);
        assert!(matches!(error, DecodeError::NamedTwice { .. }));
        let long = vec![1; limit - PROMPT.len() + 1];
        let error = refused(&mut session, &[(other, &[1]), (id, &long)]);
        let too_long = |error: &DecodeError| matches!(error, DecodeError::Model(ModelError::TooLong { length, .. }) if *length == limit + 1);
        assert!(too_long(&error), "{error}");
        // In the second of two passes, or the second sequence of one.
        let error = refused(&mut session, &[(id, &[1]), (other, &[2, 9999])]);
        assert!(matches!(
            error,
            DecodeError::Model(ModelError::TokenId { id: 9999, .. })
        ));
        assert_eq!(session.append(&[]).unwrap().len(), 0);
        assert!(matches!(
            session.rewind_to(id, &[]),
            Err(DecodeError::NothingToAppend { .. })
        ));
        assert!(session.rewind_to(id, &vec![1; limit + 1]).is_err());
        assert!(session.rewind_to(gone, &[1]).is_err());
        assert_eq!(session.tokens(id).unwrap(), PROMPT);
        let error = session.crop(id, 7).unwrap_err().to_string();
        assert!(
            error.contains("6 positions") && error.contains('7'),
            "{error}"
        );
        assert_eq!(session.remaining(id).unwrap(), limit - PROMPT.len());

        // After all that, what follows is what follows.
        let expected = setup.fresh(&one("lora"), 0, &[&PROMPT, &[9]]);
        assert!(
            append(&mut session, id, &[&[9]])[0] == expected[1],
            "{name}"
        );
        let rest = vec![1; limit - PROMPT.len() - 1];
        append(&mut session, id, &[&rest]);
        assert_eq!(session.remaining(id).unwrap(), 0);
        assert!(too_long(&refused(&mut session, &[(id, &[1])])));

        let snapshot = session.snapshot(id).unwrap();
        let mut elsewhere = setup.session(0);
        let there = elsewhere.add(one("lora")).unwrap();
        let error = elsewhere.rollback(there, &snapshot);
        assert!(matches!(error, Err(DecodeError::OtherSession)));
        let error = session.rollback(other, &snapshot);
        assert!(matches!(error, Err(DecodeError::OtherAdapters { .. })));
        let unknown = session.add(one("lore")).unwrap_err().to_string();
        assert!(
            unknown.contains("lore") && unknown.contains("lora"),
            "{unknown}"
        );
        let several = ActiveAdapters::PerSequence(vec![None, None]);
        assert!(matches!(
            session.add(several),
            Err(DecodeError::Adapt(AdaptError::Choices { given: 2, .. }))
        ));
    }
}

#[test]
fn what_a_generator_cannot_do_is_refused_before_anything_is_computed() {
    let setup = Setup::new("llama");
    for (batch_tokens, max_sequences) in [(0, 1), (1, 0)] {
        let options = GeneratorOptions {
            batch_tokens,
            max_sequences,
            ..GeneratorOptions::default()
        };
        let refused = Generator::new(setup.backbone.clone(), setup.adapters.clone(), options).err();
        assert!(matches!(refused, Some(DecodeError::Config { .. })));
    }
    let mut generator = generator(&setup, GeneratorOptions::default());
    let options = |max_tokens| SequenceOptions {
        max_tokens,
        ..SequenceOptions::default()
    };
    let mut refused = |prompt: Vec<u32>, max_tokens| {
        let refused = generator.add(prompt, ActiveAdapters::Base, options(max_tokens));
        refused.unwrap_err().to_string()
    };
    assert!(refused(vec![], 1).contains("no tokens"));
    assert!(refused(vec![1; 65], 1).contains("65"));
    assert!(refused(vec![1, 64], 1).contains("position 1"));
    assert!(refused(vec![1], 0).contains("max_tokens"));
    assert!(generator.is_idle() && generator.step().unwrap().is_empty());
}

/// A state that does not belong to a pass, a model or an adapter.
#[test]
fn a_state_of_something_else_is_refused_by_name() {
    let (llama, gemma) = (backbone("llama"), backbone("gemma3_text"));
    let state = |of: &Arc<dyn Backbone>| of.new_state(2, StateOptions::default()).unwrap();
    let refused = |of: &Arc<dyn Backbone>, layout: SequenceLayout, state: &mut DecodeState| {
        let ids = vec![3; layout.tokens()];
        let input = Input::tokens(&ids, layout);
        let found = of.forward(&input, &mut NoAdapter, Some(state));
        match found.unwrap_err() {
            ModelError::State(error) => error,
            other => panic!("{other}"),
        }
    };
    let one_sequence = SequenceLayout::new(&[4]);
    let error = refused(&llama, one_sequence, &mut state(&llama));
    assert!(
        matches!(error, StateError::OtherSequences { .. }),
        "{error}"
    );
    let later = SequenceLayout::with_past(&[1, 1], &[3, 0]);
    let error = refused(&llama, later, &mut state(&llama));
    assert!(
        matches!(error, StateError::OtherSequences { .. }),
        "{error}"
    );
    let both = SequenceLayout::new(&[2, 2]);
    let error = refused(&llama, both, &mut state(&gemma));
    assert_eq!(error, StateError::OtherModel);
    let foreign = state(&gemma).snapshot(0).unwrap();
    assert_eq!(
        state(&llama).join(foreign.clone()),
        Err(StateError::OtherModel)
    );
    assert_eq!(
        state(&llama).rollback(0, &foreign),
        Err(StateError::OtherModel)
    );
    assert!(state(&llama).snapshot(2).is_none() && state(&llama).fork(2).is_none());
}

#[test]
fn narrow_vectors_are_not_read_under_an_adapter_that_they_were_not_begun_with() {
    let setup = Setup::new("deepseek_v3");
    let mut set = AdapterSet::default();
    let mut settings =
        crate::method_settings::settings(frugal::adapt::registry::find("lora").unwrap());
    settings.insert("target_modules".into(), serde_json::json!(["kv_b_proj"]));
    let method = frugal::adapt::registry::find("lora").unwrap();
    let context = crate::support::context(setup.backbone.as_ref(), 1);
    let mut adapter = (method.build)(&settings, &context).unwrap();
    for parameter in adapter.parameters_mut() {
        let values = (0..parameter.len()).map(|i| 0.1 * (i as f32).sin());
        parameter.set(values.collect());
    }
    let entry = LoadedAdapter {
        adapter,
        head: None,
    };
    set.insert("up", entry);
    let setup = Setup {
        adapters: Arc::new(set),
        ..setup
    };
    // Begun in their own ways, they go on beside each other and after the other has left.
    let mut session = setup.session(0);
    let [base, up] = [ActiveAdapters::Base, one("up")].map(|choice| session.add(choice).unwrap());
    for pieces in [&PROMPT[..], &[9], &[2]] {
        session.append(&[(base, pieces), (up, pieces)]).unwrap();
    }
    session.remove(up).unwrap();
    let found = append(&mut session, base, &[&[60]]);
    let expected = setup.fresh(&ActiveAdapters::Base, 0, &[&PROMPT, &[9], &[2], &[60]]);
    assert!(max_difference(&found[0], &expected[3]) < 1e-5);

    let mut state = setup
        .backbone
        .new_state(1, StateOptions::default())
        .unwrap();
    let input = Input::new(&PROMPT, &[6]);
    setup
        .backbone
        .forward(&input, &mut NoAdapter, Some(&mut state))
        .unwrap();
    let layout = SequenceLayout::with_past(&[1], &[6]);
    let mut pass = setup
        .adapters
        .pass(&one("up"), &layout, Mode::Eval)
        .unwrap();
    let input = Input::tokens(&[9], layout);
    let error = setup
        .backbone
        .forward(&input, pass.as_mut(), Some(&mut state))
        .unwrap_err();
    assert!(matches!(
        error,
        ModelError::State(StateError::OtherAdapter { .. })
    ));
}
