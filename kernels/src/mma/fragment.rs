//! Accumulators in registers, with the places of their elements known.

use cubecl::prelude::*;

/// The fragment layout of an accumulator: a tile of `ROWS` queries and `COLUMNS` keys (or elements of an
/// output).
pub(crate) trait FragmentLayout: Send + Sync + 'static {
    /// Lanes.
    const PLANE: usize;
    /// Queries of a tile.
    const ROWS: usize;
    /// Keys of a tile, and elements of an output.
    const COLUMNS: usize;
    /// Elements of a tile in a lane.
    const ACC: usize;
    /// Rows of a tile in a lane.
    const LANE_ROWS: usize;
    /// Adjacent columns in a lane.
    const RUN: usize;

    /// The lane's row of element `e`.
    fn lane_row(e: usize) -> usize;
    /// Column of element `e` of tile `tile`, from the lane's first on.
    fn step(tile: usize, e: usize) -> usize;
}

/// An accumulator's tiles in vectors of a lane. All lanes of a plane call together.
#[cube]
pub(crate) trait Accumulator: FragmentLayout + Sized {
    /// [`FragmentLayout::ACC`].
    type Acc: Size;
    /// [`FragmentLayout::RUN`].
    type Run: Size;

    /// Row `i` of the lane, within a tile.
    fn row(#[comptime] i: usize) -> usize;
    /// First column of the lane.
    fn column() -> usize;

    /// The largest `x` among the row's lanes.
    fn row_max(x: f32) -> f32;
    /// The sum of `x` over the row's lanes.
    fn row_sum(x: f32) -> f32;
    /// The value of each element's row, for all elements of the `m`-th tile of rows.
    fn spread(rows: &Array<f32>, #[comptime] m: usize) -> Vector<f32, Self::Acc>;
}

/// Row-major tiles of an accumulator: `[rows, columns]` of [`FragmentLayout`]. The rows and columns of its methods are
/// those that the lane has.
#[derive(CubeType)]
pub(crate) struct Fragment<M: Accumulator> {
    pub tiles: Array<Vector<f32, M::Acc>>,
    /// Tiles side by side.
    #[cube(comptime)]
    columns: usize,
    /// Tiles one below the other.
    #[cube(comptime)]
    rows: usize,
}

/// Tile, and element in it, of column `c` in row `r` of a lane.
fn place<L: FragmentLayout>(columns: usize, r: usize, c: usize) -> (usize, usize) {
    let of_tile = L::ACC / L::LANE_ROWS;
    let element = (0..L::ACC).filter(|&e| L::lane_row(e) == r % L::LANE_ROWS).nth(c % of_tile);
    (r / L::LANE_ROWS * columns + c / of_tile, element.unwrap_or_default())
}

/// Column `c` of a lane, counted from its first.
pub(crate) fn column_step<L: FragmentLayout>(c: usize) -> usize {
    let (tile, e) = place::<L>(0, 0, c);
    L::step(tile, e)
}

#[cube]
impl<M: Accumulator> Fragment<M> {
    /// An accumulator of `rows` times `columns` tiles, not yet written.
    pub fn new(#[comptime] rows: usize, #[comptime] columns: usize) -> Self {
        Fragment::<M> { tiles: Array::new(comptime!(rows * columns)), columns, rows }
    }

    /// Rows of a lane.
    pub fn lane_rows(&self) -> comptime_type!(usize) {
        comptime!(self.rows * M::LANE_ROWS)
    }

    /// Columns of a lane.
    pub fn lane_columns(&self) -> comptime_type!(usize) {
        comptime!(self.columns * M::ACC / M::LANE_ROWS)
    }

    /// The element in row `r` and column `c`.
    pub fn get(&self, #[comptime] r: usize, #[comptime] c: usize) -> f32 {
        let (tile, e) = comptime!(place::<M>(self.columns, r, c));
        self.tiles[tile].extract(e)
    }

    /// Writes the element in row `r` and column `c`.
    pub fn set(&mut self, #[comptime] r: usize, #[comptime] c: usize, x: f32) {
        let (tile, e) = comptime!(place::<M>(self.columns, r, c));
        let mut vector = self.tiles[tile];
        vector.insert(e, x);
        self.tiles[tile] = vector;
    }

    /// Runs of adjacent columns in a row of a lane.
    pub fn lane_runs(&self) -> comptime_type!(usize) {
        comptime!(self.columns * M::ACC / M::LANE_ROWS / M::RUN)
    }

    /// The `i`-th run of row `r`.
    pub fn run(&self, #[comptime] r: usize, #[comptime] i: usize) -> Vector<f32, M::Run> {
        let mut run = Vector::<f32, M::Run>::empty();
        #[unroll]
        for c in 0..comptime!(M::RUN) {
            run.insert(c, self.get(r, comptime!(i * M::RUN + c)));
        }
        run
    }

    /// Writes zeros.
    pub fn clear(&mut self) {
        #[unroll]
        for i in 0..comptime!(self.rows * self.columns) {
            self.tiles[i] = Vector::new(0.0f32);
        }
    }

    /// Multiplies all by the factor, if there is one.
    pub fn scale(&mut self, factor: &ComptimeOption<f32>) {
        #[comptime]
        match factor {
            ComptimeOption::Some(factor) =>
            {
                #[unroll]
                for i in 0..comptime!(self.rows * self.columns) {
                    self.tiles[i] *= Vector::new(*factor);
                }
            }
            ComptimeOption::None => {}
        }
    }

    /// Multiplies each row by its factor.
    pub fn mul_rows(&mut self, factors: &Array<f32>) {
        #[unroll]
        for m in 0..self.rows {
            let factor = M::spread(factors, m);
            #[unroll]
            for n in 0..self.columns {
                self.tiles[comptime!(m * self.columns + n)] *= factor;
            }
        }
    }
}
