//! Decoding as a graph: captured once, replayed for every step.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::ThreadId;

use burn::backend::{Backend as _, BackendTypes, Dispatch};
use burn::tensor::Device;

use super::plan::{DecodeStep, StepTokens};
use crate::cache::{PagedKvCache, SequenceId};
use crate::error::Error;

/// A decoding step that is captured once and replayed: hundreds of launches become one.
///
/// The launches of a step are always the same. They read the buffers of a [`DecodeStep`], which each
/// [`replay`](Self::replay) rewrites in one copy, and the cache, which is [pinned](PagedKvCache::pin).
/// Between replays the program may do anything with the cache on this thread: prefill new sequences, fork,
/// free. On devices without graphs (a CPU, Flex) a replay runs the step again, with the same results.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{
///     CacheConfig, DecodeGraph, DecodeStep, PagedKvCache, PlanConfig, append_paged_kv,
/// };
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 16, 8, 2, 64), &device)?;
/// let sequence = cache.create();
/// let step = DecodeStep::new(&PlanConfig::new(8, 2, 64, DType::F32), 1, 100, &cache)?;
/// // A model of one layer: an embedding of 10 tokens for queries, and one for keys and values.
/// let queries = Tensor::<2>::random([10, 8 * 64], Distribution::Default, &device);
/// let keys = Tensor::<2>::random([10, 2 * 64], Distribution::Default, &device);
/// let mut decoder = DecodeGraph::capture(&mut cache, step, &[(sequence, 3)], |cache, step| {
///     let q = queries.clone().select(0, step.tokens()).reshape([1, 8, 64]);
///     let k = keys.clone().select(0, step.tokens()).reshape([1, 2, 64]);
///     append_paged_kv(cache.layer_mut(0)?, k.clone(), k, &step.slots())?;
///     step.plan().run(q, cache.layer(0)?)
/// })?;
/// for token in [3, 1, 4, 1, 5] {
///     let attended = decoder.replay(&mut cache, &[(sequence, token)])?;
///     assert_eq!(attended.output.dims(), [1, 8, 64]);
/// }
/// assert_eq!(cache.len(sequence)?, 5);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct DecodeGraph<'a, T, E = Error> {
    step: DecodeStep,
    run: Run<'a, T, E>,
    device: Device,
    output: T,
    graph: Result<DeviceGraph, String>,
    /// Behind the graph, which waits for its replays when it is dropped.
    kept: Option<Arc<ThreadId>>,
    not_send: PhantomData<*const ()>,
}

type Run<'a, T, E> = Box<dyn FnMut(&mut PagedKvCache, &DecodeStep) -> Result<T, E> + 'a>;
type DeviceGraph = <Dispatch as BackendTypes>::GraphPrimitive;

/// Runs before the capture. Fusion compiles and tunes in the first, and allocates its permanent buffers in
/// the second. Every buffer of the capture must have existed once before.
const WARM_UP: usize = 3;

impl<'a, T, E: From<Error>> DecodeGraph<'a, T, E> {
    /// Captures `run`, one decoding step of a model: for every layer it [appends](crate::append_paged_kv) to
    /// the cache at [`DecodeStep::slots`] and attends with [`DecodeStep::plan`], or the plan of its [kind](DecodeStep::plan_of). It first runs a few times
    /// with `tokens`, to compile kernels and to allocate the buffers of the step. The sequences are then
    /// reset to their former state.
    ///
    /// `run` must not copy to or read from the device; its results must depend on no changing state but the
    /// cache and the step.
    ///
    /// # Errors
    ///
    /// As [`DecodeStep::update`], and the errors of `run`.
    pub fn capture<S: StepTokens>(
        cache: &mut PagedKvCache,
        mut step: DecodeStep,
        tokens: &[(SequenceId, S)],
        run: impl FnMut(&mut PagedKvCache, &DecodeStep) -> Result<T, E> + 'a,
    ) -> Result<Self, E> {
        let mut run: Run<'a, T, E> = Box::new(run);
        cache.check_thread("DecodeGraph::capture")?;
        step.update(cache, tokens)?;
        cache.pin();
        let device = cache.device().clone();
        let captured = captured(&device, || run(cache, &step));
        for (sequence, new) in tokens {
            let len = cache.len(*sequence)?;
            cache.truncate(*sequence, len.saturating_sub(new.tokens().len()))?;
        }
        let (output, graph) = captured?;
        let kept = graph.is_ok().then(|| cache.keep_to_this_thread());
        Ok(Self { step, run, device, output, graph, kept, not_send: PhantomData })
    }

    /// Runs one step over the `cache` of the capture: each sequence goes on with its tokens. Returns the result
    /// of the captured `run`, with the values of this step in it until the next.
    ///
    /// # Errors
    ///
    /// As [`DecodeStep::update`], and if a layer of the cache was [replaced](PagedKvCache::layer_mut) since
    /// the capture, when nothing has changed; if the device fails; and the errors of `run`.
    pub fn replay<S: StepTokens>(
        &mut self,
        cache: &mut PagedKvCache,
        tokens: &[(SequenceId, S)],
    ) -> Result<&T, E> {
        const OP: &str = "DecodeGraph::replay";
        self.step.check_cache(OP, cache)?;
        if self.graph.is_ok() && !cache.is_pinned() {
            let (got, expected) = ("of other pages than were captured".into(), "of pages that stay".into());
            return Err(Error::Stale { op: OP, argument: "graph", got, expected }.into());
        }
        self.step.update(cache, tokens)?;
        match &self.graph {
            Ok(graph) => {
                // SAFETY: every page of memory that the captured launches touched is guarded by the graph as
                // long as it lives, so that nothing else can lie there. This is not `Send`, and keeps the
                // pages to its thread: update, replay, other work on the pages and what reads the output
                // follow one another in the stream of this thread, as the capture did.
                unsafe { Dispatch::graph_replay(self.device.as_dispatch(), graph) }.map_err(|error| {
                    let (got, expected) = (error.to_string(), "a step of the captured launches".into());
                    Error::Replay { op: OP, argument: "graph", got, expected }
                })?;
            }
            Err(_) => self.output = (self.run)(cache, &self.step)?,
        }
        Ok(&self.output)
    }

    /// Why the device does not replay the step by itself, so that it is run anew; nothing if it does.
    pub fn run_anew_because(&self) -> Option<&str> {
        self.graph.as_ref().err().map(String::as_str)
    }
}

impl<T, E> fmt::Debug for DecodeGraph<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let graph = self.graph.as_ref().map(|_| "captured");
        f.debug_struct("DecodeGraph")
            .field("step", &self.step)
            .field("device", &self.device)
            .field("graph", &graph)
            .field("thread", &self.kept)
            .finish_non_exhaustive()
    }
}

/// The result of `run`, and its launches as a graph, or why there is none.
fn captured<T, E>(
    device: &Device,
    mut run: impl FnMut() -> Result<T, E>,
) -> Result<(T, Result<DeviceGraph, String>), E> {
    let on = device.as_dispatch();
    let prepared = Dispatch::graph_prepare(on);
    let warm_up = if prepared.is_ok() { WARM_UP } else { 1 };
    for _ in 0..warm_up {
        let output = run();
        // Fusion computes no result that is dropped before a sync. The capture reports failures.
        let _ = Dispatch::sync(on);
        if let Err(error) = output {
            let _ = Dispatch::graph_stop_capture(on);
            return Err(error);
        }
    }
    match prepared.and_then(|()| Dispatch::graph_start_capture(on)) {
        Ok(()) => {
            let output = run();
            // Also after an error: the window must be closed.
            let graph = Dispatch::graph_stop_capture(on);
            Ok((output?, graph.map_err(|error| error.to_string())))
        }
        Err(error) => {
            let _ = Dispatch::graph_stop_capture(on);
            Ok((run()?, Err(error.to_string())))
        }
    }
}
