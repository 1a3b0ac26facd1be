//! The stages in shared memory, and the trait of the ways there.

use cubecl::prelude::*;

/// 16 bytes of any content.
pub(crate) type Vec16 = Vector<u32, Const<4>>;

/// A ring of stages in shared memory.
#[derive(CubeType)]
pub(crate) struct Ring {
    pub shared: Shared<[Vec16]>,
    /// Vec16s that the unit has in flight through its registers.
    pub staged: Array<Vec16>,
    /// First vec16 of the stage that is multiplied.
    pub stage: usize,
    #[cube(comptime)]
    stage_vecs: usize,
    #[cube(comptime)]
    stages: usize,
}

/// Stages that are copied while one is multiplied. A single one is copied to registers meanwhile.
pub(crate) fn stages_ahead(stages: usize) -> usize {
    if stages > 1 { stages - 1 } else { 1 }
}

#[cube]
impl Ring {
    /// A ring at its first stage. `staged` is the number of copies that a unit has in flight.
    pub fn new(
        shared: Shared<[Vec16]>,
        #[comptime] staged: usize,
        #[comptime] stage_vecs: usize,
        #[comptime] stages: usize,
    ) -> Self {
        Ring { shared, staged: Array::new(staged), stage: 0usize.runtime(), stage_vecs, stages }
    }

    /// First vec16 of the stage that follows after `ahead` others.
    pub fn after(&self, #[comptime] ahead: usize) -> usize {
        let mut stage = self.stage + comptime!(ahead * self.stage_vecs);
        if comptime!(self.stages == 1) {
            stage = 0usize.runtime();
        } else if stage >= comptime!(self.stages * self.stage_vecs) {
            stage -= comptime!(self.stages * self.stage_vecs);
        }
        stage
    }

    /// Goes on to the next stage.
    pub fn advance(&mut self) {
        self.stage += self.stage_vecs;
        if self.stage == comptime!(self.stages * self.stage_vecs) {
            self.stage = 0usize.runtime();
        }
    }
}

/// A way from global to shared memory. All units of a cube call together.
#[cube]
pub(crate) trait Staging: Send + Sync + 'static {
    /// Begins to copy vec16 `at` of `from` to vec16 `to` of shared memory, or zeros unless `valid`. `slot` is
    /// the number of the copy among those of the unit.
    fn copy(
        ring: &mut Ring,
        from: &Tensor<Vec16>,
        at: usize,
        valid: bool,
        to: usize,
        #[comptime] slot: usize,
    );
    /// Commits the copies of a stage.
    fn commit();
    /// Waits for every plane, and for copies until at most so many commits are in flight.
    fn wait(#[comptime] in_flight: usize);
}
