//! Masks, eight bits to a byte: exact, everywhere.

use burn::tensor::{Bool, DType, Int, Tensor};
use burn_flashinfer::{
    BitOrder, Indptr, packbits, reference, segment_packbits, segment_unpackbits, unpackbits,
};

use crate::devices::{Target, device_tests};
use crate::support::Rng;

device_tests!(any_length, known_bytes, segments, views);

const ORDERS: [BitOrder; 2] = [BitOrder::Big, BitOrder::Little];

fn random(len: usize, rng: &mut Rng) -> Vec<bool> {
    (0..len).map(|_| rng.below(2) == 1).collect()
}

fn mask(bits: &[bool], target: &Target) -> Tensor<1, Bool> {
    Tensor::from_data(bits, &target.device)
}

fn bytes(packed: Tensor<1, Int>) -> Vec<u8> {
    assert_eq!(packed.dtype(), DType::U8);
    packed.into_data().try_to_vec().expect("bytes")
}

fn bools(bits: Tensor<1, Bool>) -> Vec<bool> {
    bits.into_data().iter::<bool>().collect()
}

fn any_length(target: Target) {
    let rng = &mut Rng::new("bits lengths");
    for len in [0, 1, 7, 8, 9, 16, 17, 127, 577, 4096, 100_003] {
        let bits = random(len, rng);
        for order in ORDERS {
            let what = format!("{len} bits, {order:?}, on {}", target.name);
            let packed = packbits(mask(&bits, &target), order).expect("it fits");
            assert_eq!(packed.dims(), [len.div_ceil(8)], "{what}");
            let back = unpackbits(packed.clone(), len, order).expect("it fits");
            assert_eq!(back.dims(), [len], "{what}");
            assert_eq!(bools(back), bits, "{what}");
            assert_eq!(bytes(packed), reference::packbits(&bits, order), "{what}");
        }
    }
}

/// As numpy's: the first bit is the highest, or the lowest.
fn known_bytes(target: Target) {
    let bits: Vec<bool> = [1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1].map(|bit| bit == 1).to_vec();
    for (order, wanted) in [(BitOrder::Big, [0xb2, 0x60]), (BitOrder::Little, [0x4d, 0x06])] {
        let packed = packbits(mask(&bits, &target), order).expect("it fits");
        assert_eq!(bytes(packed), wanted, "{order:?} on {}", target.name);
    }
}

/// Segments with no bits, with whole bytes of them and with all but one; one segment, and hundreds.
fn segments(target: Target) {
    let rng = &mut Rng::new("bits segments");
    let random_lengths = (0..300).map(|_| rng.below(40)).collect();
    for lengths in [
        vec![0],
        vec![1],
        vec![0, 0, 0],
        vec![8, 16, 24],
        vec![0, 7, 0, 0, 9, 1, 0],
        vec![17 * 37, 54 * 97, 3],
        random_lengths,
    ] {
        let indptr = Indptr::from_lengths(&lengths, &target.device).expect("valid");
        let bits = random(indptr.total(), rng);
        for order in ORDERS {
            let what = format!("{lengths:?}, {order:?}, on {}", target.name);
            let (packed, byte_indptr) =
                segment_packbits(mask(&bits, &target), &indptr, order).expect("it fits");
            let wanted = reference::segment_packbits(&bits, indptr.as_slice(), order).expect("a row pointer");
            assert_eq!(byte_indptr.as_slice(), wanted.1, "{what}");
            let back = segment_unpackbits(packed.clone(), &indptr, order).expect("it fits");
            assert_eq!(bools(back), bits, "{what}");
            assert_eq!(bytes(packed), wanted.0, "{what}");
            let back = reference::segment_unpackbits(&wanted.0, indptr.as_slice(), order);
            assert_eq!(back.expect("it fits"), bits, "{what}");
        }
    }
}

/// A mask that was computed on the device, views with an offset and with gaps, and bytes from the host.
fn views(target: Target) {
    let rng = &mut Rng::new("bits views");
    let numbers: Vec<i32> = (0..999).map(|_| rng.below(10) as i32).collect();
    let computed = Tensor::<1, Int>::from_data(&numbers[..], &target.device).lower_scalar(4);
    let bits: Vec<bool> = numbers.iter().map(|&number| number < 4).collect();
    let got = packbits(computed.clone(), BitOrder::Little).expect("it fits");
    assert_eq!(bytes(got), reference::packbits(&bits, BitOrder::Little), "computed on {}", target.name);

    let got = packbits(computed.clone().slice(13..700), BitOrder::Big).expect("it fits");
    assert_eq!(bytes(got), reference::packbits(&bits[13..700], BitOrder::Big), "sliced on {}", target.name);

    let column = computed.reshape([333, 3]).slice([0..333, 1..2]).reshape([333]);
    let strided: Vec<bool> = bits.chunks(3).map(|row| row[1]).collect();
    let got = packbits(column, BitOrder::Big).expect("it fits");
    assert_eq!(bytes(got), reference::packbits(&strided, BitOrder::Big), "strided on {}", target.name);

    let raw: Vec<u8> = (0..200).map(|_| rng.bits() as u8).collect();
    let packed = Tensor::<1, Int>::from_data(&raw[..], (&target.device, DType::U8));
    let back = unpackbits(packed.slice(5..88), 83 * 8 - 3, BitOrder::Little).expect("it fits");
    let wanted = reference::unpackbits(&raw[5..88], 83 * 8 - 3, BitOrder::Little).expect("it fits");
    assert_eq!(bools(back), wanted, "from the host on {}", target.name);
}
