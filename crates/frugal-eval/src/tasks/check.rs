//! Whether the parts of a task fit together.

use super::filter::Filter;
use super::functions;
use super::kind::Kind;
use super::metric::Metric;
use super::task::Task;
use super::template::FUNCTION;

impl Task {
    /// What contradicts itself.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.metrics.is_empty() {
            return Err("`metrics`: give at least one".into());
        }
        if self.prompt.target.is_empty() {
            return Err("`prompt.target` is missing".into());
        }
        let choices = !self.prompt.choices.is_empty() || !self.prompt.choices_field.is_empty();
        if self.kind == Kind::MultipleChoice && !choices {
            return Err(
                "`kind = \"multiple_choice\"` needs `prompt.choices` or `prompt.choices_field`"
                    .into(),
            );
        }
        if choices && matches!(self.kind, Kind::Loglikelihood | Kind::LoglikelihoodRolling) {
            return Err(
                "`prompt.choices` and `prompt.choices_field` belong to `kind = \"multiple_choice\"` and `\"generate_until\"`".into(),
            );
        }
        if !self.filters.is_empty() && self.kind != Kind::GenerateUntil {
            return Err("`filters` belong to `kind = \"generate_until\"`".into());
        }
        if self.kind == Kind::GenerateUntil && self.generation.max_tokens == 0 {
            return Err("`generation.max_tokens` must be at least 1".into());
        }
        if !self.prompt.gen_prefix.is_empty() && self.kind == Kind::LoglikelihoodRolling {
            return Err(
                "`prompt.gen_prefix` has no meaning for `kind = \"loglikelihood_rolling\"`".into(),
            );
        }
        if self.repeats == 0
            || self.repeats > 1
                && (self.kind != Kind::GenerateUntil || self.generation.temperature <= 0.0)
        {
            return Err("`repeats` above 1 needs `kind = \"generate_until\"` and a `generation.temperature` above 0".into());
        }
        self.check_functions()?;
        if let Some(k) = self
            .metrics
            .iter()
            .filter_map(Metric::attempts)
            .find(|k| !(1..=self.repeats).contains(k))
        {
            return Err(format!("pass@{k} needs `repeats` of at least {}", k.max(1)));
        }
        if self.kind == Kind::LoglikelihoodRolling && self.num_fewshot > 0 {
            return Err(
                "`num_fewshot` has no meaning for `kind = \"loglikelihood_rolling\"`".into(),
            );
        }
        if let Some(metric) = self.metrics.iter().find(|m| !m.measures(self.kind)) {
            return Err(format!(
                "metric `{}` does not measure `{:?}` tasks",
                metric.name(),
                self.kind
            ));
        }
        self.filters.iter().try_for_each(Filter::check)?;
        self.metrics.iter().try_for_each(Metric::check)
    }

    /// Whether the functions that it names are built in and do what they are named for.
    fn check_functions(&self) -> Result<(), String> {
        let prompts = [Some(&self.prompt), self.fewshot.prompt.as_ref()];
        for prompt in prompts.into_iter().flatten() {
            for source in [&prompt.text, &prompt.target, &prompt.choices_field] {
                if let Some(name) = source.strip_prefix(FUNCTION) {
                    functions::check_field(name)?;
                }
            }
        }
        let docs = [
            Some(self.process_docs.as_str()),
            self.fewshot.process_docs.as_deref(),
        ];
        for name in docs.into_iter().flatten().filter(|name| !name.is_empty()) {
            functions::check_docs(name)?;
        }
        if self.process_results.is_empty() {
            return Ok(());
        }
        functions::check_results(&self.process_results)
    }
}
