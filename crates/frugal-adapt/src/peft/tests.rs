use super::*;

#[test]
fn the_card_counts_the_head_and_names_what_can_load_it() {
    let of = |method: &str, head| card(registry::find(method).unwrap(), "base", (10, head), None);
    let lora = of("lora", 4);
    assert!(
        lora.contains("library_name: peft") && lora.contains("PeftModel.from_pretrained"),
        "{lora}"
    );
    assert!(
        lora.contains(" 14 trained parameters, 4 of them in the classification head. "),
        "{lora}"
    );
    let own = of("houlsby", 0);
    assert!(
        !own.contains("library_name")
            && !own.contains("PeftModel")
            && own.contains(" 10 trained parameters. "),
        "{own}"
    );
    assert!(
        [&lora, &own]
            .iter()
            .all(|card| card.contains("`frugal eval --adapter DIR`"))
    );
}
