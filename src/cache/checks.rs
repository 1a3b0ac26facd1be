//! Pages that do not fit a call.

use std::sync::Arc;

use burn::tensor::Device;

use super::clock::{Says, Stamp, Unfit, check_thread};
use super::kv_pages::KvPages;
use crate::check;
use crate::error::{Error, Result};

impl KvPages {
    /// Refuses slots or tables for pages of another size, or for a larger pool: of `page_size` tokens, with
    /// pages below `pages_needed`.
    pub(crate) fn check_pool(
        &self,
        op: &'static str,
        argument: &'static str,
        page_size: usize,
        pages_needed: usize,
    ) -> Result<()> {
        let pool = self.shape();
        let refuse = |got, expected| Err(Error::Value { op, argument, got, expected });
        if page_size != pool.page_size {
            return refuse(
                format!("of pages of {page_size} tokens"),
                format!("pages of {} tokens, as `pages`", pool.page_size),
            );
        }
        if pages_needed > pool.pages {
            return refuse(
                format!("naming page {}", pages_needed - 1),
                format!("a page of the pool, below {}", pool.pages),
            );
        }
        Ok(())
    }

    fn check_thread(&self, op: &'static str, argument: &'static str) -> Result<()> {
        self.clock.as_ref().map_or(Ok(()), |clock| check_thread(op, argument, clock))
    }

    /// Refuses handles of another cache, or older than a change of its sequences.
    pub(crate) fn check_current(
        &self,
        op: &'static str,
        argument: &'static str,
        says: Says,
        stamp: Option<&Arc<Stamp>>,
    ) -> Result<()> {
        match stamp.and_then(|stamp| stamp.unfit(self.clock.as_ref(), says)) {
            None => self.check_thread(op, "pages"),
            Some(Unfit::Foreign) => {
                let (got, expected) = ("of another cache".into(), "of the cache of `pages`".into());
                Err(Error::Value { op, argument, got, expected })
            }
            Some(Unfit::Rewritten) => {
                let (got, expected) = ("of an earlier step".into(), "taken from the step again".into());
                Err(Error::Stale { op, argument, got, expected })
            }
            Some(Unfit::Changed(sequence)) => {
                let (got, expected) =
                    (format!("older than a change of {sequence:?}"), "one made or updated after it".into());
                Err(Error::Stale { op, argument, got, expected })
            }
        }
    }

    /// Refuses pages that are not on `device`, or through which a gradient would have to flow.
    pub(crate) fn check(&self, op: &'static str, argument: &'static str, device: &Device) -> Result<()> {
        self.check_thread(op, argument)?;
        check::device(op, argument, &self.device())?;
        check::same_device(op, argument, &self.device(), device)?;
        if let Some((k, v)) = self.floats() {
            check::float(op, argument, k.dtype(), device)?;
            check::no_gradient(op, argument, k)?;
            check::no_gradient(op, argument, v)?;
        }
        Ok(())
    }
}
