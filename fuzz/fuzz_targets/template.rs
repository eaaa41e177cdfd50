#![no_main]

use frugal_core::data::Message;
use frugal_core::template::ChatTemplate;
use frugal_core::tokenizer::TokenizerSettings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, &TokenizerSettings::default()) {
        let turns = [Message::new("user", "2+2?"), Message::new("assistant", "4")];
        let _ = template.render(&turns, true);
    }
});
