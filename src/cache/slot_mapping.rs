//! The places of tokens in a page pool.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};

use super::clock::Stamp;
use super::page_table::PageTable;
use crate::error::{Error, Result};
use crate::indptr::{Indptr, index, upload};
use crate::memory;

/// The slots of new tokens in a page pool, for [`append_paged_kv`](crate::append_paged_kv).
///
/// Token `t` goes to the slot `page * page_size + offset in the page`, or nowhere.
#[derive(Debug, Clone)]
pub struct SlotMapping {
    len: usize,
    /// One past the largest slot.
    end: usize,
    page_size: usize,
    pub(crate) tensor: Tensor<1, Int>,
    /// The moment that it is of, if it comes from a cache.
    stamp: Option<Arc<Stamp>>,
}

/// Bytes that a slot takes: in the list, and in the other one that finds two tokens of one slot.
const SLOT_BYTES: usize = size_of::<i32>() + size_of::<(i32, u32)>();

impl SlotMapping {
    /// Token `t` becomes token `positions[t]` of request `requests[t]`; `None` leaves it out (padding).
    ///
    /// The table must already have the room: its lengths count the new tokens.
    ///
    /// # Errors
    ///
    /// If the two differ in length, a request or a position is outside the table, or two tokens want one slot.
    pub fn new(table: &PageTable, requests: &[Option<usize>], positions: &[usize]) -> Result<Self> {
        const OP: &str = "SlotMapping::new";
        if requests.len() != positions.len() {
            return Err(Error::Value {
                op: OP,
                argument: "positions",
                got: format!("of length {}", positions.len()),
                expected: format!("one for each of {} tokens", requests.len()),
            });
        }
        let mut slots = Vec::with_capacity(requests.len());
        for (at, (&request, &position)) in requests.iter().zip(positions).enumerate() {
            let Some(request) = request else {
                slots.push(-1);
                continue;
            };
            let Some(&length) = table.kv_lengths().get(request) else {
                return Err(Error::Index {
                    op: OP,
                    argument: "requests",
                    at,
                    got: request.to_string(),
                    expected: format!("one of {} requests", table.requests()),
                });
            };
            let slot = table.slot(request, position).ok_or_else(|| Error::Index {
                op: OP,
                argument: "positions",
                at,
                got: position.to_string(),
                expected: match table.first_key(request) {
                    first if position < first => format!("at least {first}, as those before were given back"),
                    _ => format!("below {length}, the length of request {request}"),
                },
            })?;
            slots.push(index(OP, "slots", at, slot)?);
        }
        Self::in_table(OP, slots, table)
    }

    /// The last `append_indptr[r + 1] - append_indptr[r]` tokens of each request `r`, in order.
    ///
    /// # Errors
    ///
    /// If the two differ in the number of requests, a request appends more tokens than its length, two tokens
    /// want one slot, or the host has no memory for a slot of each token.
    pub fn last(table: &PageTable, append_indptr: &Indptr) -> Result<Self> {
        const OP: &str = "SlotMapping::last";
        if append_indptr.requests() != table.requests() {
            return Err(Error::Value {
                op: OP,
                argument: "append_indptr",
                got: format!("of {} requests", append_indptr.requests()),
                expected: format!("of {} requests, as the page table", table.requests()),
            });
        }
        let requests = || append_indptr.lengths().zip(table.kv_lengths()).enumerate();
        for (request, (appended, &length)) in requests() {
            if appended > length {
                return Err(Error::Index {
                    op: OP,
                    argument: "append_indptr",
                    at: request + 1,
                    got: format!("{appended} new tokens"),
                    expected: format!("at most {length}, the length of request {request}"),
                });
            }
            let first = table.first_key(request);
            if length - appended < first {
                return Err(Error::Index {
                    op: OP,
                    argument: "append_indptr",
                    at: request + 1,
                    got: format!("{appended} new tokens"),
                    expected: format!(
                        "at most {}, as those before token {first} were given back",
                        length - first
                    ),
                });
            }
        }
        let all = append_indptr.total();
        memory::on_host(OP, "append_indptr", memory::bytes([all, SLOT_BYTES]))?;
        let mut slots = memory::list(OP, "append_indptr", all)?;
        for (request, (appended, &length)) in requests() {
            for slot in (length - appended..length).filter_map(|position| table.slot(request, position)) {
                slots.push(index(OP, "slots", slots.len(), slot)?);
            }
        }
        Self::in_table(OP, slots, table)
    }

    /// Slots that are on the device already, in a pool of `pages` pages.
    pub(crate) fn of_tensor(
        tensor: Tensor<1, Int>,
        pages: usize,
        page_size: usize,
        stamp: Option<Arc<Stamp>>,
    ) -> Self {
        Self { len: tensor.dims()[0], end: pages.saturating_mul(page_size), page_size, tensor, stamp }
    }

    /// Slots of tokens of `table`, none of which may come twice.
    fn in_table(op: &'static str, slots: Vec<i32>, table: &PageTable) -> Result<Self> {
        let page_size = table.page_size();
        let mut sorted = memory::list(op, "slots", slots.len())?;
        sorted.extend(slots.iter().copied().zip(0_u32..).filter(|&(slot, _)| slot >= 0));
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let (slot, at) = (pair[1].0 as usize, pair[1].1 as usize);
            return Err(Error::Index {
                op,
                argument: "slots",
                at,
                got: format!("page {}, offset {}", slot / page_size, slot % page_size),
                expected: format!("a slot that token {} does not write already", pair[0].1),
            });
        }
        Ok(Self { stamp: table.stamp().cloned(), ..Self::trusted(slots, page_size, &table.device()) })
    }

    /// `slots` of which none comes twice, -1 for a token that is left out, copied to `device`.
    pub(crate) fn trusted(slots: Vec<i32>, page_size: usize, device: &Device) -> Self {
        let end = slots.iter().max().map_or(0, |&slot| (slot + 1) as usize);
        Self { len: slots.len(), end, page_size, tensor: upload(slots, device), stamp: None }
    }

    pub(crate) fn stamped(self, stamp: Arc<Stamp>) -> Self {
        Self { stamp: Some(stamp), ..self }
    }

    pub(crate) fn stamp(&self) -> Option<&Arc<Stamp>> {
        self.stamp.as_ref()
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens a page holds.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The least number of pages of a pool for these slots.
    pub(crate) fn pages_needed(&self) -> usize {
        self.end.div_ceil(self.page_size)
    }
}
