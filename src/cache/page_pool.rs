//! The pages of a pool: the number of sequences that use each, and the cached prefixes.

use crate::error::{Error, Result};

/// A pool of pages with reference counts. It knows no tensor: a page is a number.
///
/// A page is free, or its owners are the sequences that use it and, at most once, the tree of prefixes that
/// remembers it.
#[derive(Debug, Clone)]
pub(crate) struct PagePool {
    size: usize,
    /// The pages that were ever used: a large pool takes host memory only for those.
    pages: Vec<Page>,
    /// Those of them that are free; the last one is handed out next.
    returned: Vec<usize>,
    /// The number of remembered pages that no sequence uses.
    idle: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Page {
    users: u32,
    remembered: bool,
    /// A user of it has given back what leads to it.
    orphaned: bool,
}

impl PagePool {
    pub(crate) fn new(pages: usize) -> Self {
        Self { size: pages, pages: Vec::new(), returned: Vec::new(), idle: 0 }
    }

    pub(crate) fn pages(&self) -> usize {
        self.size
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.size - self.pages.len() + self.returned.len()
    }

    /// Pages that only the tree of prefixes owns.
    pub(crate) fn idle_pages(&self) -> usize {
        self.idle
    }

    pub(crate) fn is_idle(&self, page: usize) -> bool {
        let Page { users, remembered, .. } = self.pages[page];
        remembered && users == 0
    }

    /// Pages with more than one owner.
    pub(crate) fn shared_pages(&self) -> usize {
        (0..self.pages.len()).filter(|&page| self.owners(page) > 1).count()
    }

    /// Refuses unless `needed` pages are free or idle.
    pub(crate) fn check_available(
        &self,
        op: &'static str,
        argument: &'static str,
        needed: usize,
    ) -> Result<()> {
        let free = self.free_pages() + self.idle;
        if needed > free {
            return Err(Error::PoolExhausted { op, argument, needed, free, pages: self.pages() });
        }
        Ok(())
    }

    /// A page that one sequence uses, if one is free.
    pub(crate) fn take(&mut self) -> Option<usize> {
        let page = match self.returned.pop() {
            Some(page) => page,
            None if self.pages.len() == self.size => return None,
            None => {
                self.pages.push(Page::default());
                self.pages.len() - 1
            }
        };
        self.pages[page] = Page { users: 1, ..Page::default() };
        Some(page)
    }

    /// One more sequence uses a page that has an owner.
    pub(crate) fn share(&mut self, page: usize) {
        self.idle -= usize::from(self.is_idle(page));
        self.pages[page].users += 1;
    }

    /// The sequences that use a page, and the tree if it remembers it.
    pub(crate) fn owners(&self, page: usize) -> u32 {
        let Page { users, remembered, .. } = self.pages[page];
        users + u32::from(remembered)
    }

    /// One sequence fewer uses a page; without an owner it is free.
    pub(crate) fn release(&mut self, page: usize) {
        self.pages[page].users -= 1;
        self.idle += usize::from(self.is_idle(page));
        self.free_without_owner(page);
    }

    /// A user of a page has given back what leads to it: the tree may not become an owner any more.
    pub(crate) fn orphan(&mut self, page: usize) {
        self.pages[page].orphaned = true;
    }

    pub(crate) fn is_orphaned(&self, page: usize) -> bool {
        self.pages[page].orphaned
    }

    /// The tree becomes an owner of a page that a sequence uses.
    pub(crate) fn remember(&mut self, page: usize) {
        self.pages[page].remembered = true;
    }

    /// The tree gives a page up; without an owner it is free.
    pub(crate) fn forget(&mut self, page: usize) {
        self.idle -= usize::from(self.is_idle(page));
        self.pages[page].remembered = false;
        self.free_without_owner(page);
    }

    fn free_without_owner(&mut self, page: usize) {
        if self.owners(page) == 0 {
            self.returned.push(page);
        }
    }
}
