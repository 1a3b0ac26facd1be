//! Memory for texts: by how long they are, not by how long they might become.

use anyhow::Result;
use burn_flashinfer::{KvLayout, PagedKvCache, SequenceId, append_paged_kv, gather_paged_kv};

use super::model::Llama;

/// A text gets room for as many tokens again as it has, and for this many at least: few texts are moved at all, and a token
/// of a long one is moved once on average.
const MORE_TOKENS: usize = 256;

/// The number of tokens that a text of `len` tokens is given room for. It never becomes longer than `most`.
pub fn room(len: usize, most: usize) -> usize {
    len.saturating_add(len.max(MORE_TOKENS)).min(most)
}

/// The number of tokens of a page: as many as `asked` for, unless the shortest text would leave a part of it empty. What is
/// reserved is so at most twice what texts have room for.
pub fn page_size(asked: usize, rooms: impl Iterator<Item = usize>) -> usize {
    rooms.fold(asked, usize::min)
}

/// A cache of pages for texts with this much room each.
pub fn new_cache(
    model: &Llama,
    rooms: impl Iterator<Item = usize>,
    page_size: usize,
    layout: KvLayout,
) -> Result<PagedKvCache> {
    let pages = rooms.map(|room| room.div_ceil(page_size)).fold(0, usize::saturating_add);
    model.new_cache(pages, page_size, layout)
}

/// Copies sequences to another cache, bit for bit, and says what they are there.
pub fn copy(
    model: &Llama,
    from: &PagedKvCache,
    to: &mut PagedKvCache,
    sequences: &[SequenceId],
) -> Result<Vec<SequenceId>> {
    let growth: Vec<_> =
        sequences.iter().map(|&sequence| Ok((to.create(), from.len(sequence)?))).collect::<Result<_>>()?;
    let (table, slots) = (from.page_table(sequences)?, to.reserve(&growth)?);
    for layer in 0..model.config.layers {
        let (k, v) = gather_paged_kv(from.layer(layer)?, &table, model.cached_dtype())?;
        append_paged_kv(to.layer_mut(layer)?, k, v, &slots)?;
    }
    Ok(growth.into_iter().map(|(sequence, _)| sequence).collect())
}
