//! Groups of a batch's requests whose keys begin with the same pages.

use std::iter;
use std::ops::Range;

use burn::tensor::{DType, Tensor};

use crate::cache::PageTable;
use crate::check::same_device;
use crate::error::{Error, Result};
use crate::indptr::Indptr;

/// A batch of requests, split into levels: the pages that requests share, then those that fewer of them
/// share, and finally each request's own pages.
///
/// [`cascade_attention`](crate::cascade_attention) attends to each level with the queries of all requests
/// that share it as one request, so that its keys and values are read once. It merges the results by LSE.
/// Prompts with a common prefix, and forks of one sequence, are such batches (the method of FlashInfer's
/// cascade attention, and of Hydragen, <https://arxiv.org/abs/2402.05099>).
///
/// ```
/// use burn::tensor::Device;
/// use burn_flashinfer::{Cascade, Indptr, PageTable};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // Three requests that begin with pages 4 and 2; two of them go on with page 7.
/// let indices = [4, 2, 7, 0, 4, 2, 7, 1, 4, 2, 3];
/// let table = PageTable::new(&[0, 4, 8, 11], &indices, &[5, 16, 1], 16, 8, &device)?;
/// let queries = Indptr::from_lengths(&[1, 1, 1], &device)?;
///
/// let cascade = Cascade::new(&table, &queries, 1)?;
/// assert_eq!(cascade.levels(), 3);
/// assert_eq!(cascade.groups(0).collect::<Vec<_>>(), [(0..3, &[4, 2][..])]);
/// assert_eq!(cascade.groups(1).collect::<Vec<_>>(), [(0..2, &[7][..]), (2..3, &[][..])]);
/// assert_eq!(cascade.keys_read(), 32 + 16 + 5 + 16 + 1);
/// assert_eq!(cascade.keys_seen(), 53 + 64 + 33);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Cascade {
    pub(crate) shared: Vec<Level>,
    pub(crate) own: Level,
    keys_seen: usize,
}

/// Groups of requests as the requests of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    /// The end of each group of requests.
    ends: Vec<usize>,
    pub(crate) qo_indptr: Indptr,
    pub(crate) table: PageTable,
    /// The distance from each query token's own position to the one that its group gives it among these keys; none if
    /// they are the same.
    pub(crate) shifts: Option<Tensor<1>>,
}

/// Adjacent requests, and which pages of each they share.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    requests: Range<usize>,
    pages: Range<usize>,
}

impl Cascade {
    /// Finds the shared prefixes of adjacent requests: whole pages from the first on, all of them before the
    /// keys of the requests' own queries. So a causal mask concerns the last level alone. Requests that share
    /// should be adjacent.
    ///
    /// `table` and `qo_indptr` are those of the batch as for
    /// [`batch_prefill_paged`](crate::batch_prefill_paged). A group is formed if it saves reading at least
    /// `least_saved` keys. A level costs two launches more: on an H200 some 10 µs, in which it reads about 10
    /// 000 keys of 8 heads of 128 elements in bf16.
    ///
    /// # Errors
    ///
    /// If the row pointer does not have the requests of the table, or is on another device; if a request gave back
    /// [keys](crate::PagedKvCache::release_before).
    pub fn new(table: &PageTable, qo_indptr: &Indptr, least_saved: usize) -> Result<Self> {
        const OP: &str = "Cascade::new";
        same_device(OP, "qo_indptr", &qo_indptr.device(), &table.device())?;
        if qo_indptr.requests() != table.requests() {
            return Err(Error::Value {
                op: OP,
                argument: "qo_indptr",
                got: format!("of {} requests", qo_indptr.requests()),
                expected: format!("of {} requests, as `table`", table.requests()),
            });
        }
        table.check_complete(OP)?;
        let prefixes: Vec<&[usize]> = qo_indptr
            .lengths()
            .zip(table.kv_lengths())
            .enumerate()
            .map(|(request, (queries, &keys))| {
                let pages = table.pages(request);
                &pages[..(keys.saturating_sub(queries) / table.page_size()).min(pages.len())]
            })
            .collect();
        let least_pages = least_saved.div_ceil(table.page_size()).max(1);
        let (mut levels, mut taken) = (Vec::<Vec<Group>>::new(), vec![0; table.requests()]);
        // The groups around the run at hand: where each ends, and how many there are on its level and above.
        let mut around: Vec<(usize, usize)> = Vec::new();
        for Run { requests, common } in runs(&prefixes) {
            while around.pop_if(|&mut (end, _)| end <= requests.start).is_some() {}
            let (depth, level) = (taken[requests.start], around.last().map_or(0, |&(_, level)| level));
            if (requests.len() - 1) * (common - depth) < least_pages {
                continue;
            }
            if level == levels.len() {
                levels.push(Vec::new());
            }
            around.push((requests.end, level + 1));
            taken[requests.clone()].fill(common);
            levels[level].push(Group { requests, pages: depth..common });
        }
        let level = |groups: Vec<Group>| Level::shared(OP, groups, table, qo_indptr);
        let shared = levels.into_iter().map(level).collect::<Result<_>>()?;
        let own = Level::own(OP, &taken, table, qo_indptr)?;
        Ok(Self { shared, own, keys_seen: table.kv_lengths().iter().sum() })
    }

    /// Levels, the requests' own keys among them: 1 if nothing is shared.
    pub fn levels(&self) -> usize {
        self.each().count()
    }

    /// The groups of a level, in the order of the requests: which requests, and the pages that they share there. Every
    /// request is in one group; a group without pages, or of one request, shares nothing.
    pub fn groups(&self, level: usize) -> impl Iterator<Item = (Range<usize>, &[usize])> {
        self.each().nth(level).into_iter().flat_map(|level| {
            let starts = iter::once(0).chain(level.ends.iter().copied());
            let requests = starts.zip(&level.ends).map(|(start, &end)| start..end);
            requests.enumerate().map(|(group, requests)| (requests, level.table.pages(group)))
        })
    }

    /// Keys that attention over the levels reads.
    pub fn keys_read(&self) -> usize {
        self.each().flat_map(|level| level.table.kv_lengths()).sum()
    }

    /// Keys of all requests: the reads of attention without levels.
    pub fn keys_seen(&self) -> usize {
        self.keys_seen
    }

    fn each(&self) -> impl Iterator<Item = &Level> {
        self.shared.iter().chain(iter::once(&self.own))
    }
}

/// Adjacent requests, as many as possible, that share their first `common` pages and not all the next one.
struct Run {
    requests: Range<usize>,
    common: usize,
}

/// All runs of two requests and more, in the order of where they begin, each before those within it.
///
/// They are the inner nodes of the tree of the prefixes. Two neighbours are compared once each, so that time
/// grows as the page table does. (The intervals of Abouelhoda, Kurtz and Ohlebusch,
/// <https://doi.org/10.1016/S1570-8667(03)00065-0>.)
fn runs(prefixes: &[&[usize]]) -> Vec<Run> {
    let agree = |pair: &[&[usize]]| pair[0].iter().zip(pair[1]).take_while(|(a, b)| a == b).count();
    // The last request shares nothing with the next, which ends all open groups.
    let common = prefixes.windows(2).map(agree).chain(iter::once(0));
    let (mut found, mut open) = (Vec::new(), Vec::<Run>::new());
    for (end, common) in (1..).zip(common) {
        let mut start = end - 1;
        while let Some(mut run) = open.pop_if(|run| run.common > common) {
            start = run.requests.start;
            run.requests.end = end;
            found.push(run);
        }
        if common > 0 && open.last().is_none_or(|run| run.common < common) {
            open.push(Run { requests: start..end, common });
        }
    }
    found.sort_unstable_by_key(|run| (run.requests.start, run.common));
    found
}

impl Level {
    /// The shared pages of some groups; the requests between them are groups without pages.
    fn shared(op: &'static str, shared: Vec<Group>, table: &PageTable, qo: &Indptr) -> Result<Self> {
        let mut groups = Vec::with_capacity(2 * shared.len() + 1);
        let mut next = 0;
        let end = Group { requests: table.requests()..table.requests(), pages: 0..0 };
        for group in shared.into_iter().chain(iter::once(end)) {
            if next < group.requests.start {
                groups.push(Group { requests: next..group.requests.start, pages: 0..0 });
            }
            next = group.requests.end;
            groups.push(group);
        }
        groups.pop();
        let shifts = Tensor::from_data(&shifts(&groups, table, qo)[..], (&table.device(), DType::F32));
        let level = Self::upload(op, &groups, |_| table.page_size(), table, qo)?;
        Ok(Self { shifts: Some(shifts), ..level })
    }

    /// The pages of each request after the taken ones.
    fn own(op: &'static str, taken: &[usize], table: &PageTable, qo: &Indptr) -> Result<Self> {
        let left = |(request, &taken): (usize, &usize)| Group {
            requests: request..request + 1,
            pages: taken..table.pages(request).len(),
        };
        let groups: Vec<Group> = taken.iter().enumerate().map(left).collect();
        let last = |request: usize| (table.kv_lengths()[request] - 1) % table.page_size() + 1;
        Self::upload(op, &groups, last, table, qo)
    }

    /// `last`: how many tokens the last page has that a group takes of its first request, if it takes any.
    fn upload(
        op: &'static str,
        groups: &[Group],
        last: impl Fn(usize) -> usize,
        table: &PageTable,
        qo: &Indptr,
    ) -> Result<Self> {
        let device = &table.device();
        let (mut indptr, mut indices, mut last_page_len, mut rows) = (vec![0], vec![], vec![], vec![0]);
        for Group { requests, pages } in groups {
            indices.extend_from_slice(&table.pages(requests.start)[pages.clone()]);
            indptr.push(indices.len());
            last_page_len.push(if pages.is_empty() { 0 } else { last(requests.start) });
            rows.push(qo.as_slice()[requests.end]);
        }
        Ok(Self {
            ends: groups.iter().map(|group| group.requests.end).collect(),
            qo_indptr: Indptr::new(&rows, device)?,
            table: PageTable::trusted(op, indptr, indices, &last_page_len, table.page_size(), device)?
                .of_the_time_of(table),
            shifts: None,
        })
    }
}

/// [`Level::shifts`] of groups of requests.
fn shifts(groups: &[Group], table: &PageTable, qo: &Indptr) -> Vec<f32> {
    let (rows, keys) = (qo.as_slice(), table.kv_lengths());
    let mut shifts = Vec::with_capacity(qo.total());
    for Group { requests, pages } in groups {
        // In the group, the last query of all is at the last key.
        let (last, keys_end) = (rows[requests.end] as i64, (pages.end * table.page_size()) as i64);
        for request in requests.clone() {
            let (end, keys) = (rows[request + 1] as i64, keys[request] as i64);
            let shift = (keys_end - last) - (keys - end);
            shifts.resize(rows[request + 1], shift as f32);
        }
    }
    shifts
}
