//! What the outputs of a head mean.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a head was trained for, as `problem_type` of a Hugging Face config says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProblemType {
    /// One label of several.
    #[default]
    #[serde(rename = "single_label_classification")]
    SingleLabel,
    /// Any number of labels.
    #[serde(rename = "multi_label_classification")]
    MultiLabel,
    /// A number for each output.
    #[serde(rename = "regression")]
    Regression,
}

impl ProblemType {
    /// Its name in Hugging Face configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleLabel => "single_label_classification",
            Self::MultiLabel => "multi_label_classification",
            Self::Regression => "regression",
        }
    }

    /// Whether it is the usual one, which files need not name.
    pub fn is_single_label(&self) -> bool {
        *self == Self::SingleLabel
    }

    /// From the config of a model that was saved as a classifier with so many outputs.
    ///
    /// # Errors
    /// A name that is none.
    pub fn of_config(raw: &Value, outputs: usize) -> Result<Self, String> {
        let Some(name) = raw.get("problem_type").filter(|name| !name.is_null()) else {
            // As in text-classification pipelines: a single label is a yes or no.
            return Ok(if outputs == 1 {
                Self::MultiLabel
            } else {
                Self::SingleLabel
            });
        };
        let all = [Self::SingleLabel, Self::MultiLabel, Self::Regression];
        let found = all.into_iter().find(|p| name.as_str() == Some(p.name()));
        found.ok_or_else(|| {
            format!(
                "it is {name}, which is none of single_label_classification, multi_label_classification and regression"
            )
        })
    }

    /// Turns logits into probabilities, or leaves them as the numbers that they are.
    pub fn activate(self, logits: &mut [f32]) {
        match self {
            Self::Regression => {}
            Self::MultiLabel => logits
                .iter_mut()
                .for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
            Self::SingleLabel => {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter_mut().for_each(|x| *x = (*x - largest).exp());
                let sum: f32 = logits.iter().sum();
                logits.iter_mut().for_each(|x| *x /= sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_problem_type_decides_what_its_logits_mean() {
        let of = |json: &str, labels| {
            let raw: Value = serde_json::from_str(json).unwrap();
            ProblemType::of_config(&raw, labels)
        };
        assert_eq!(of("{}", 2), Ok(ProblemType::SingleLabel));
        let null = "{\"problem_type\": null}";
        assert_eq!(of(null, 1), Ok(ProblemType::MultiLabel));
        let regression = "{\"problem_type\": \"regression\"}";
        assert_eq!(of(regression, 1), Ok(ProblemType::Regression));
        for bad in ["\"ranking\"", "3"] {
            let error = of(&format!("{{\"problem_type\": {bad}}}"), 1).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
        // Values of torch.softmax and torch.sigmoid.
        let check = |problem: ProblemType, expected: [f32; 3]| {
            let mut values = [1.0, -0.5, 2.0];
            problem.activate(&mut values);
            for (found, expected) in values.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{problem:?}: {values:?}");
            }
        };
        check(
            ProblemType::SingleLabel,
            [0.253_716_17, 0.056_611_73, 0.689_672_05],
        );
        check(
            ProblemType::MultiLabel,
            [0.731_058_6, 0.377_540_68, 0.880_797_1],
        );
        check(ProblemType::Regression, [1.0, -0.5, 2.0]);
    }

    #[test]
    fn names_are_those_of_transformers() {
        for problem in [
            ProblemType::SingleLabel,
            ProblemType::MultiLabel,
            ProblemType::Regression,
        ] {
            let text = serde_json::to_string(&problem).unwrap();
            assert_eq!(text, format!("{:?}", problem.name()));
        }
    }
}
