//! What a method would form anew in each pass, kept where its parameters do not change from one
//! pass to the next.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::site::SiteId;

/// What was formed of one adapter on one backbone: a value of each kind for each site.
#[derive(Default)]
pub struct DerivedCache(Mutex<HashMap<(SiteId, TypeId), Box<dyn Any + Send>>>);

impl DerivedCache {
    /// The value of this kind that was formed for the site before, or else the one formed now.
    pub fn keep<T: Clone + Send + 'static>(&self, site: SiteId, form: impl FnOnce() -> T) -> T {
        let key = (site, TypeId::of::<T>());
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all()
            .get(&key)
            .and_then(|value| value.downcast_ref::<T>().cloned());
        known.unwrap_or_else(|| {
            let formed = form();
            all().insert(key, Box::new(formed.clone()));
            formed
        })
    }
}
