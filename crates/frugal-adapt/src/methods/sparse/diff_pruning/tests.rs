use super::*;

#[test]
fn gates_are_open_closed_or_between_as_their_formula_says() {
    let config = DiffPruningConfig {
        concrete_lower: -0.1,
        concrete_upper: 1.1,
        ..DiffPruningConfig::default()
    };
    let logits = Tensor::<1>::from_data(
        TensorData::from([-5.0f32, -1.0, 0.0, 1.0, 5.0]),
        &Device::default(),
    );
    // By hand: σ(1) = 0.731059, so s (ζ − γ) + γ = 0.777270; σ(±5) falls outside [1/12, 11/12].
    let expected = [0.0, 0.222_730, 0.5, 0.777_270, 1.0];
    let found = to_vec(config.gate(logits.clone()));
    assert!(
        found
            .iter()
            .zip(expected)
            .all(|(f, e)| (f - e).abs() < 1e-5),
        "{found:?}"
    );
    // σ(α − log(0.1 / 1.1)) = σ(α + 2.397895).
    let open = to_vec(config.open(logits));
    assert!((open[2] - 0.916_667).abs() < 1e-5, "{open:?}");
}

#[test]
fn the_share_of_open_gates_is_the_probability_that_the_price_counts() {
    let config = DiffPruningConfig {
        alpha_init: 0.4,
        structured: false,
        ..DiffPruningConfig::default()
    };
    let place = Place {
        site: frugal_nn::SiteId(0),
        path: "m".into(),
        d_in: 200,
        d_out: 100,
    };
    let mut gated = Gated::new(&place, &config, &Device::default());
    gated.w.set(vec![1.0; place.len()]);
    let delta = to_vec(
        gated
            .delta(&place, &config, Mode::Train { seed: 3 })
            .inner(),
    );
    let open = delta.iter().filter(|v| **v > 0.0).count() as f32 / delta.len() as f32;
    let expected = to_vec(gated.open(&config, Mode::Eval))[0] / delta.len() as f32;
    // σ(0.4) = 0.598688; three standard deviations of the share are 0.0104.
    assert!(
        (expected - 0.598_688).abs() < 1e-4 && (open - expected).abs() < 0.0104,
        "{open} {expected}"
    );
}
