//! Kernels with an error each: it is found, and the report says where. Their correct twins pass the same checks.

mod common;

use common::{Device, compile};
use hip_sim::dispatch::Checks;
use hip_sim::memory::AccessError;
use hip_sim::report::{Cause, Fault};

fn checks() -> Checks {
    Checks { lds_races: true, lds_unwritten: true, barriers: true, lanes: true, ..Checks::default() }
}

fn launch(
    device: &Device,
    kernel: &str,
    groups: u32,
    items: u32,
    arguments: &[u64],
) -> Result<(), Box<Fault>> {
    let done = device.run(kernel, [groups, 1, 1], [items, 1, 1], arguments, checks());
    done.map(drop).map_err(Box::new)
}

#[test]
fn a_missing_barrier() {
    let Some(device) = compile("planted.hip") else { return };
    let values: Vec<f32> = (0..512u16).map(f32::from).collect();
    let (source, target) = (device.upload(&values), device.upload(&[0f32; 512]));
    launch(&device, "transpose_tile", 2, 256, &[source, target]).expect("nothing is wrong with it");
    let transposed: Vec<f32> = device.download(target, 512);
    for (at, &value) in transposed.iter().enumerate() {
        let (tile, row, column) = (at / 256, at / 16 % 16, at % 16);
        assert_eq!(value, (tile * 256 + column * 16 + row) as f32);
    }
    let fault = launch(&device, "transpose_tile_without_barrier", 2, 256, &[source, target])
        .expect_err("the tile is read before other waves wrote it");
    // The first wave reads rows that the others have yet to write, or a later one reads or writes what is not its own.
    assert!(matches!(fault.cause, Cause::LdsRace { .. } | Cause::LdsUnwritten { .. }), "{fault}");
    assert_eq!(fault.kernel, "transpose_tile_without_barrier");
    assert!(fault.mnemonic.starts_with("ds_"), "{fault}");
    assert!(fault.lane.is_some(), "{fault}");
    // Without the look at what was never written it is the race that shows, with the other wave.
    let races = Checks { lds_races: true, ..Checks::default() };
    let fault = device
        .run("transpose_tile_without_barrier", [2, 1, 1], [256, 1, 1], &[source, target], races)
        .expect_err("a race");
    let Cause::LdsRace { other_wave, .. } = fault.cause else { panic!("{fault}") };
    assert_ne!(other_wave, fault.wave, "{fault}");
}

#[test]
fn a_page_out_of_the_pool() {
    let Some(device) = compile("planted.hip") else { return };
    const PAGES: i32 = 10;
    let pool: Vec<f32> = (0..PAGES * 64).map(|at| at as f32).collect();
    let (pool, out) = (device.upload(&pool), device.upload(&[0f32; 4 * 64]));
    let gather = |table: [i32; 4]| {
        let table = device.upload(&table);
        launch(&device, "gather_pages", 4, 128, &[pool, table, out])
    };
    gather([9, 0, 3, 9]).expect("all pages are in the pool");
    assert_eq!(device.download::<f32>(out, 4 * 64)[65..67], [1.0, 2.0]);
    let fault = gather([9, 0, PAGES, 9]).expect_err("there is no page 10");
    let Cause::Memory { address, write: false, error: AccessError::OutOfBounds { allocation, size }, .. } =
        fault.cause
    else {
        panic!("{fault}")
    };
    assert_eq!((allocation, size), (pool, PAGES as usize * 256));
    assert_eq!((fault.workgroup, fault.wave, fault.lane), ([2, 0, 0], 0, Some(0)), "{fault}");
    assert_eq!(address, pool + PAGES as u64 * 256, "the first byte of the page");
    assert!(fault.mnemonic.starts_with("global_load"), "{fault}");
    let fault = gather([9, -1, 3, 9]).expect_err("nor a page -1");
    assert!(matches!(fault.cause, Cause::Memory { write: false, .. }), "{fault}");
    assert_eq!(fault.workgroup, [1, 0, 0], "{fault}");
    device.memory.free(pool).expect("it was allocated");
    let fault = gather([0; 4]).expect_err("the pool is gone");
    assert!(matches!(fault.cause, Cause::Memory { error: AccessError::Freed { .. }, .. }), "{fault}");
}

#[test]
fn a_lane_that_is_off() {
    let Some(device) = compile("planted.hip") else { return };
    let values: Vec<u32> = (0..64).collect();
    let right = device.upload(&values);
    launch(&device, "fold_halves", 1, 64, &[right]).expect("all lanes are on when they are asked");
    assert_eq!(device.download::<u32>(right, 64)[..3], [32, 34, 36]);
    let wrong = device.upload(&values);
    let fault =
        launch(&device, "fold_halves_too_late", 1, 64, &[wrong]).expect_err("half of the lanes is off");
    assert_eq!(fault.cause, Cause::InactiveLane { lane: 32 }, "{fault}");
    assert_eq!((fault.mnemonic.as_str(), fault.lane), ("ds_bpermute_b32", Some(0)), "{fault}");
}

/// The numbers say which lane it was: it holds columns 8 to 11 of row 5 of the first factor.
#[test]
fn a_matrix_lane_with_the_data_of_another() {
    let Some(device) = compile("planted.hip") else { return };
    // Small integers: exact in f16, as their sums are in f32.
    let a: Vec<f32> = (0..256u16).map(|at| f32::from(at % 7) - 3.0).collect();
    let b: Vec<f32> = (0..256u16).map(|at| f32::from(at % 5) - 2.0).collect();
    let halves = |values: &[f32]| values.iter().map(|&x| hip_sim::float::f32_to_f16(x)).collect::<Vec<u16>>();
    let (a_at, b_at) = (device.upload(&halves(&a)), device.upload(&halves(&b)));
    let d = device.upload(&[0f32; 256]);
    let product = |kernel| {
        launch(&device, kernel, 1, 64, &[a_at, b_at, d]).expect("no rule is broken");
        device.download::<f32>(d, 256)
    };
    // Row and column of D from row `i` of A and column `j` of B, both with their elements side by side.
    let expected: Vec<f32> =
        (0..256).map(|at| (0..16).map(|k| a[at / 16 * 16 + k] * b[at % 16 * 16 + k]).sum()).collect();
    assert_eq!(product("matrix_product"), expected);
    let wrong = product("matrix_product_with_a_wrong_lane");
    let rows: Vec<usize> =
        (0..16).filter(|row| wrong[row * 16..][..16] != expected[row * 16..][..16]).collect();
    assert_eq!(rows, [5]);
    let swapped = |k: usize| if k / 4 == 2 { a[6 * 16 + k] } else { a[5 * 16 + k] };
    let row: Vec<f32> = (0..16).map(|j| (0..16).map(|k| swapped(k) * b[j * 16 + k]).sum()).collect();
    assert_eq!(wrong[5 * 16..][..16], row);
}

#[test]
fn local_memory_never_written_or_not_there() {
    let Some(device) = compile("planted.hip") else { return };
    let (source, target) = (device.upload(&[1f32; 256]), device.upload(&[0f32; 256]));
    let fault =
        launch(&device, "sum_of_unwritten", 1, 256, &[source, target]).expect_err("64 values are missing");
    assert!(matches!(fault.cause, Cause::LdsUnwritten { .. }), "{fault}");
    assert_eq!(fault.wave, 3, "{fault}: the last wave reads what the first should have written");
    launch(&device, "beyond_lds", 1, 256, &[target, 0]).expect("it stays within its array");
    let fault = launch(&device, "beyond_lds", 1, 256, &[target, 1]).expect_err("one beyond the array");
    assert_eq!(fault.cause, Cause::LdsOutOfBounds { address: 1024, bytes: 4, size: 1024 }, "{fault}");
    assert_eq!((fault.wave, fault.lane), (3, Some(63)), "{fault}");
}
