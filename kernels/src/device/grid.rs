//! The number of cubes of a launch, spread over the axes that a device has.

use cubecl::{CubeCount, CubeDim, client::Client};

use super::profile::DeviceProfile;
use super::refusal::Refusal;

/// At least `cubes` cubes, as few more as the axes' limits allow. Kernels index themselves by `CUBE_POS` and
/// stop beyond the last.
pub(crate) fn cover(kernel: &'static str, cubes: usize, limit: [u32; 3]) -> Result<CubeCount, Refusal> {
    let refused = Refusal::Grid { kernel, cubes, limit };
    // `CUBE_POS` is 32 bits wide wherever addresses are.
    let Ok(cubes) = u32::try_from(cubes) else { return Err(refused) };
    let x = cubes.clamp(1, limit[0]);
    let y = cubes.div_ceil(x).clamp(1, limit[1]);
    let z = cubes.div_ceil(x).div_ceil(y).max(1);
    if z > limit[2] { Err(refused) } else { Ok(CubeCount::Static(x, y, z)) }
}

/// One unit per element.
pub(crate) fn elementwise(
    kernel: &'static str,
    client: &Client,
    elements: usize,
) -> Result<(CubeCount, CubeDim), Refusal> {
    let dim = CubeDim::new(client, elements);
    let cubes = elements.div_ceil(dim.num_elems() as usize);
    Ok((cover(kernel, cubes, DeviceProfile::of(client).max_cubes)?, dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(cubes: usize, limit: [u32; 3]) -> Option<[u32; 3]> {
        match cover("test", cubes, limit) {
            Ok(CubeCount::Static(x, y, z)) => Some([x, y, z]),
            _ => None,
        }
    }

    #[test]
    fn spills_over_the_axes() {
        let limit = [65535, 65535, 65535];
        assert_eq!(covered(0, limit), Some([1, 1, 1]));
        assert_eq!(covered(1, limit), Some([1, 1, 1]));
        assert_eq!(covered(65535, limit), Some([65535, 1, 1]));
        assert_eq!(covered(65536, limit), Some([65535, 2, 1]));
        let [x, y, z] = covered(u32::MAX as usize, limit).expect("fits");
        assert!(x as u64 * y as u64 * z as u64 >= u32::MAX as u64);
    }

    #[test]
    fn refuses_what_no_launch_holds() {
        assert_eq!(covered(9, [2, 2, 2]), None);
        assert_eq!(covered(8, [2, 2, 2]), Some([2, 2, 2]));
        assert_eq!(covered(u32::MAX as usize + 1, [u32::MAX; 3]), None);
    }
}
