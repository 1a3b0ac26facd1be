//! Bytes of bits as words.

use cubecl::{client::Client, prelude::*};

use super::map::MaskBits;
use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, contiguous};

const KERNEL: &str = "custom mask";

/// Copies bytes, four to a word; words beyond the last byte are 0.
#[cube(launch_unchecked, address_type = "dynamic")]
fn words_of(bytes: &[u8], words: &mut [u32], len: usize, count: usize) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let mut word = 0u32.runtime();
    #[unroll]
    for i in 0..4usize {
        let at = 4 * ABSOLUTE_POS + i;
        if at < len {
            word |= u32::cast_from(bytes[at]) << comptime!(8 * i as u32);
        }
    }
    words[ABSOLUTE_POS] = word;
}

/// Writes the bytes of a mask, `[bytes]` of u8, to its words, `[bytes / 4 + PADDING]`, rounded up. The bits of a request are
/// `query · kv_len + key`, the lowest of a byte first, and begin with a byte of their own.
///
/// # Errors
///
/// If tensors are not contiguous, or of other lengths. Nothing is launched then.
pub fn mask_words(client: &Client, bytes: TensorBinding, words: TensorBinding) -> Result<()> {
    let len = bytes.size();
    contiguous(KERNEL, "bytes", &bytes, &[len])?;
    let count = len.div_ceil(4) + MaskBits::PADDING;
    contiguous(KERNEL, "words", &words, &[count])?;
    // An empty buffer cannot be bound.
    let bytes = if len == 0 { words.clone() } else { bytes };
    let address = addresses(&[(&bytes, 1), (&words, 4)]);
    let (cubes, dim) = elementwise(KERNEL, client, count)?;
    // SAFETY: a unit beyond the last word stops, and bytes beyond the last are not read.
    unsafe {
        words_of::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            bytes.into_buffer_arg(),
            words.into_buffer_arg(),
            len,
            count,
        );
    }
    Ok(())
}
