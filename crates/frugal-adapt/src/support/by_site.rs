//! One thing for each adapted site.

use frugal_nn::{Parameter, SiteId, SiteTable};

/// Values by site, for some of a model's sites.
pub(crate) struct BySite<T>(Vec<Option<T>>);

impl<T> BySite<T> {
    /// Nothing at any site.
    pub fn empty(sites: &SiteTable) -> Self {
        Self((0..sites.len()).map(|_| None).collect())
    }

    pub fn insert(&mut self, site: SiteId, value: T) {
        self.0[site.index()] = Some(value);
    }

    pub fn get(&self, site: SiteId) -> Option<&T> {
        self.0.get(site.index())?.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    /// What `make` turns each value into, where it does.
    pub fn filter_map<U>(&self, make: impl Fn(&T) -> Option<U>) -> BySite<U> {
        BySite(
            self.0
                .iter()
                .map(|value| value.as_ref().and_then(&make))
                .collect(),
        )
    }
}

/// What has trained parameters.
pub(crate) trait HasParameters {
    fn parameters(&self) -> Vec<&Parameter>;
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;
}

impl<T: HasParameters> HasParameters for BySite<T> {
    fn parameters(&self) -> Vec<&Parameter> {
        self.iter().flat_map(T::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.iter_mut().flat_map(T::parameters_mut).collect()
    }
}
