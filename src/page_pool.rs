//! Which pages of a pool are in use, and by how many sequences.

use crate::error::{Error, Result};

/// A pool of pages with reference counts. It knows no tensor: a page is a number.
#[derive(Debug, Clone)]
pub(crate) struct PagePool {
    /// Owners of each page.
    owners: Vec<u32>,
    /// Free pages; the last one is handed out next.
    free: Vec<usize>,
}

impl PagePool {
    pub(crate) fn new(pages: usize) -> Self {
        Self { owners: vec![0; pages], free: (0..pages).rev().collect() }
    }

    pub(crate) fn pages(&self) -> usize {
        self.owners.len()
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Refuses unless `needed` pages are free.
    pub(crate) fn check_free(&self, op: &'static str, argument: &'static str, needed: usize) -> Result<()> {
        let free = self.free.len();
        if needed > free {
            return Err(Error::PoolExhausted { op, argument, needed, free, pages: self.pages() });
        }
        Ok(())
    }

    /// A page with one owner, if one is free.
    pub(crate) fn take(&mut self) -> Option<usize> {
        let page = self.free.pop()?;
        self.owners[page] = 1;
        Some(page)
    }

    /// One more owner for a page in use.
    pub(crate) fn share(&mut self, page: usize) {
        self.owners[page] += 1;
    }

    pub(crate) fn owners(&self, page: usize) -> u32 {
        self.owners[page]
    }

    /// One owner fewer; the last one frees the page.
    pub(crate) fn release(&mut self, page: usize) {
        self.owners[page] -= 1;
        if self.owners[page] == 0 {
            self.free.push(page);
        }
    }
}
