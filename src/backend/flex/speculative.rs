//! Verification of drafted tokens by the large model's probabilities; the arithmetic is that of the kernels.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::draw::Draw;
use super::sampling::draw_from;
use super::view::{self, Rows, dims, with_rows};
use crate::extension::DRAW_WORDS;

/// The result of a request: its tokens, then -1; the number of drafts accepted each by itself; the number
/// before the first rejection; true if a token follows these.
struct Verified {
    ids: Vec<i32>,
    counts: [i32; 3],
}

/// `[requests, drafted + 1]` tokens and `[requests, 3]` counts.
pub(super) fn chain(
    draft_probs: FlexTensor,
    draft_ids: FlexTensor,
    target_probs: FlexTensor,
    draws: FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let (draft_probs, target_probs) = (with_rows(draft_probs), with_rows(target_probs));
    let (draft_ids, draws) = (view::dense(draft_ids), view::dense(draws));
    let [requests, drafted, _] = dims(&draft_probs);
    let (p, q): (Rows<'_, f32, 2>, Rows<'_, f32, 2>) = (Rows::of(&draft_probs), Rows::of(&target_probs));
    let (ids, words): (&[i32], &[i32]) = (draft_ids.storage(), draws.storage());
    let verify = |request: usize| {
        let mut words_of = [0; DRAW_WORDS];
        words_of.copy_from_slice(&words[request * DRAW_WORDS..][..DRAW_WORDS]);
        let draft = &ids[request * drafted..][..drafted];
        verified(&Draw::of(words_of), draft, |i| p.row([request, i]), |i| q.row([request, i]))
    };
    let verified: Vec<Verified> = (0..requests).into_par_iter().map(verify).collect();
    let ids = verified.iter().flat_map(|verified| verified.ids.iter().copied()).collect();
    let counts = verified.iter().flat_map(|verified| verified.counts).collect();
    (view::ints(ids, [requests, drafted + 1]), view::ints(counts, [requests, 3]))
}

fn verified<'a>(
    draw: &Draw,
    draft: &[i32],
    p: impl Fn(usize) -> &'a [f32],
    q: impl Fn(usize) -> &'a [f32],
) -> Verified {
    let is_accepted = |(i, &id): (usize, &i32)| {
        // A token outside of the vocabulary has no probability. The first block is that of the token after
        // the accepted.
        let u = (draw.words(i as u32 + 1)[0] >> 8) as f32 / (1 << 24) as f32;
        let id = usize::try_from(id).unwrap_or(usize::MAX);
        p(i).get(id).zip(q(i).get(id)).is_some_and(|(p, q)| u * p < *q)
    };
    let accepted: Vec<bool> = draft.iter().enumerate().map(is_accepted).collect();
    let emitted = accepted.iter().take_while(|accepted| **accepted).count();
    let target = q(emitted);
    let token = if emitted == draft.len() {
        draw_from(target, draw)
    } else {
        // A comparison instead of `max`, which would drop a NaN.
        let excess = target.iter().zip(p(emitted)).map(|(q, p)| if q - p < 0.0 { 0.0 } else { q - p });
        draw_from(&excess.collect::<Vec<f32>>(), draw)
    };
    let mut ids = draft[..emitted].to_vec();
    ids.push(token.unwrap_or(0) as i32);
    ids.resize(draft.len() + 1, -1);
    let accepted = accepted.iter().filter(|accepted| **accepted).count() as i32;
    Verified { ids, counts: [accepted, emitted as i32, i32::from(token.is_some())] }
}
