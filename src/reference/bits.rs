//! Masks, eight bits to a byte.

use super::check::{check_len, value};
use crate::error::Result;
use crate::types::BitOrder;

/// [`packbits`](crate::packbits): byte `b` is `Σ 2^w_i` of the bits `8b + i` that are set, `w_i` being `i`, or with
/// [`BitOrder::Big`] `7 - i`.
pub fn packbits(bits: &[bool], order: BitOrder) -> Vec<u8> {
    let mut bytes = vec![0; bits.len().div_ceil(8)];
    for (i, _) in bits.iter().enumerate().filter(|&(_, &bit)| bit) {
        bytes[i / 8] += 1 << weight(i, order);
    }
    bytes
}

/// [`segment_packbits`](crate::segment_packbits): the bytes and their row pointer.
///
/// # Errors
///
/// If `indptr` is not a row pointer over `bits`.
pub fn segment_packbits(bits: &[bool], indptr: &[usize], order: BitOrder) -> Result<(Vec<u8>, Vec<usize>)> {
    check_indptr("reference::segment_packbits", indptr, bits.len())?;
    let (mut bytes, mut byte_indptr) = (vec![], vec![0]);
    for segment in indptr.windows(2) {
        bytes.extend(packbits(&bits[segment[0]..segment[1]], order));
        byte_indptr.push(bytes.len());
    }
    Ok((bytes, byte_indptr))
}

/// [`unpackbits`](crate::unpackbits): the first `len` bits.
///
/// # Errors
///
/// If `len` bits take another number of bytes.
pub fn unpackbits(bytes: &[u8], len: usize, order: BitOrder) -> Result<Vec<bool>> {
    check_len("reference::unpackbits", "bytes", bytes.len(), &[len.div_ceil(8)])?;
    Ok((0..len).map(|i| bytes[i / 8] >> weight(i, order) & 1 == 1).collect())
}

/// [`segment_unpackbits`](crate::segment_unpackbits): the bits of all segments, `indptr` being their row pointer.
///
/// # Errors
///
/// If `indptr` is not a row pointer, or its segments take another number of bytes.
pub fn segment_unpackbits(bytes: &[u8], indptr: &[usize], order: BitOrder) -> Result<Vec<bool>> {
    const OP: &str = "reference::segment_unpackbits";
    check_indptr(OP, indptr, indptr.last().copied().unwrap_or(0))?;
    let lengths = indptr.windows(2).map(|segment| segment[1] - segment[0]);
    check_len(OP, "bytes", bytes.len(), &[lengths.clone().map(|bits| bits.div_ceil(8)).sum()])?;
    let (mut bits, mut rest) = (vec![], bytes);
    for len in lengths {
        let (segment, after) = rest.split_at(len.div_ceil(8));
        bits.extend(unpackbits(segment, len, order)?);
        rest = after;
    }
    Ok(bits)
}

fn weight(i: usize, order: BitOrder) -> usize {
    match order {
        BitOrder::Big => 7 - i % 8,
        BitOrder::Little => i % 8,
    }
}

/// Refuses a row pointer that does not rise from 0 to `end`.
pub(super) fn check_indptr(op: &'static str, indptr: &[usize], end: usize) -> Result<()> {
    if indptr.first() == Some(&0) && indptr.last() == Some(&end) && indptr.is_sorted() {
        return Ok(());
    }
    Err(value(op, "indptr", format!("{indptr:?}"), format!("rising from 0 to {end}")))
}
