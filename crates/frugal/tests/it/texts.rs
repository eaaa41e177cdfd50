//! Texts in, texts out: what the program does, from the library.

use burn::prelude::Device;
use frugal::adapt::ActiveAdapters;
use frugal::decode::{CacheType, FinishReason, GenerateConfig, Sampler, SamplerConfig};
use frugal::model::load::Lookup;
use frugal::run::{
    Conversation, ConversationOptions, GenerateRequest, OpenOptions, Opened, Prompt, RunError,
    generate, open,
};
use frugal_core::template::source_of;

fn builtin() -> Opened {
    let lookup = Lookup::default();
    let options = OpenOptions {
        needs_tokenizer: true,
        ..OpenOptions::new(&lookup, Device::flex())
    };
    open("builtin", &[], &options, &mut |_| {}).unwrap()
}

fn request(prompts: &[&str], stop: &[&str]) -> GenerateRequest {
    let prompt = |text: &&str| Prompt {
        text: (*text).to_owned(),
        adapter: None,
    };
    GenerateRequest {
        prompts: prompts.iter().map(prompt).collect(),
        chat: false,
        system: None,
        stop: stop.iter().map(|text| (*text).to_owned()).collect(),
        max_tokens: 16,
        sampler: SamplerConfig::default(),
        seed: 0,
        cache_type: CacheType::F32,
    }
}

#[test]
fn pieces_of_an_answer_are_the_answer() {
    let opened = builtin();
    let request = request(&["a small house", "the old tree"], &[]);
    let mut texts = vec![String::new(); 2];
    let mut tokens = vec![Vec::new(); 2];
    let found = generate(&opened, &request, &mut |piece| {
        texts[piece.prompt].push_str(piece.text);
        tokens[piece.prompt].extend(piece.token);
        true
    })
    .unwrap();
    for (i, found) in found.iter().enumerate() {
        assert!(!found.text.is_empty() && found.prompt_tokens > 0);
        assert_eq!((&found.text, &found.tokens), (&texts[i], &tokens[i]));
    }
    // One that stops, beside one that goes on.
    let text = &found[0].text;
    let middle = (text.len() / 2..).find(|&i| text.is_char_boundary(i));
    let stop = &text[middle.unwrap()..];
    let stopped = generate(
        &opened,
        &GenerateRequest {
            stop: vec![stop.to_owned()],
            ..request.clone()
        },
        &mut |_| true,
    )
    .unwrap();
    assert_eq!(stopped[0].text, text[..text.find(stop).unwrap()]);
    assert_eq!(stopped[0].finish, FinishReason::Stop);
    assert_eq!(stopped[1].text, found[1].text);
    // The reader has enough.
    let mut seen = 0;
    let ended = generate(&opened, &request, &mut |_| {
        seen += 1;
        seen < 3
    });
    let written: usize = ended.unwrap().iter().map(|found| found.tokens.len()).sum();
    assert_eq!(written, 3);
}

#[test]
fn a_chat_without_a_template_and_an_adapter_that_is_not_there_are_refused() {
    let opened = builtin();
    if !opened.files.tokenizer().unwrap().has_chat_template() {
        let chat = GenerateRequest {
            chat: true,
            ..request(&["hello"], &[])
        };
        let error = generate(&opened, &chat, &mut |_| true).unwrap_err();
        assert!(error.to_string().contains("no chat template"), "{error}");
    }
    let mut other = request(&["hello"], &[]);
    other.prompts[0].adapter = Some("runs/none".into());
    let error = generate(&opened, &other, &mut |_| true).unwrap_err();
    assert!(matches!(error, RunError::Adapt(_)) && error.to_string().contains("runs/none"));
    let folder = std::path::PathBuf::from("runs/none");
    let lookup = Lookup::default();
    let options = OpenOptions::new(&lookup, Device::flex());
    let error = open("builtin", &[folder], &options, &mut |_| {}).err();
    assert!(error.unwrap().to_string().contains("runs/none"));
}

#[test]
fn an_answer_is_what_the_whole_conversation_gives() {
    let opened = builtin();
    let mut tokenizer = opened.files.tokenizer().unwrap().clone();
    let source = source_of("chatml").unwrap();
    tokenizer.set_chat_template(&source).unwrap();
    let options = ConversationOptions {
        max_tokens: 12,
        ..ConversationOptions::default()
    };
    let mut talk = Conversation::new(&opened, tokenizer.clone(), &options).unwrap();
    let mut sampler = Sampler::new(SamplerConfig::default(), 0).unwrap();
    talk.start(Some("Be brief."));
    for message in ["a small house", "and then"] {
        let mut text = String::new();
        let answered = talk.answer(message, &mut sampler, &mut |piece| {
            text.push_str(piece);
            true
        });
        answered.unwrap();
        let (answer, before) = talk.messages().split_last().unwrap();
        assert_eq!(answer.content, text);
        // The same prompt in a session that remembers nothing.
        let rendered = tokenizer.render_chat(before, true).unwrap();
        let ids = tokenizer.encode(&rendered, false).unwrap();
        let config = GenerateConfig {
            max_tokens: 12,
            sampler: SamplerConfig::default(),
            eos_token_ids: tokenizer.eos_ids().to_vec(),
            seed: 0,
            cache_type: CacheType::F32,
        };
        let (backbone, adapters) = (&opened.backbone, &opened.adapters);
        let base = ActiveAdapters::Base;
        let found =
            frugal::decode::generate(backbone, adapters, &base, &[ids], &config, &mut |_, _| true);
        let whole = tokenizer.decode(&found.unwrap()[0].tokens, true).unwrap();
        assert!(whole.starts_with(&text), "{message}: {text:?} of {whole:?}");
    }
    assert_eq!(talk.messages().len(), 5);
    // What cannot be answered is not part of the conversation.
    let long = "a small house ".repeat(2000);
    let error = talk.answer(&long, &mut sampler, &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    assert_eq!(talk.messages().len(), 5);
    talk.reset();
    assert_eq!(talk.messages().len(), 1);
}
