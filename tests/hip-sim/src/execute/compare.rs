//! `v_cmp_*` and `v_cmpx_*`.

use std::cmp::Ordering;

use super::{Outcome, unsupported};
use crate::decode::{Detail, Instruction, Number, Operand, Relation};
use crate::wave::{EXEC, LANES, Wave};

impl Wave {
    pub(super) fn compare(&mut self, i: &Instruction) -> Outcome {
        let Detail::Compare(compare) = i.detail else { return Err(unsupported("VOPC")) };
        let relation = compare.relation;
        let mask = match compare.number {
            _ if relation == Relation::Class => self.class(i, compare.number),
            Number::F16 => related(relation, &self.float16(i, 0), &self.float16(i, 1)),
            Number::F32 => related(relation, &self.float32(i, 0), &self.float32(i, 1)),
            Number::F64 => related(relation, &self.float64(i, 0), &self.float64(i, 1)),
            Number::U16 => related(relation, &self.source16(i, 0), &self.source16(i, 1)),
            Number::U32 => related(relation, &self.source32(i, 0), &self.source32(i, 1)),
            Number::U64 => related(relation, &self.source64(i, 0, false), &self.source64(i, 1, false)),
            Number::I16 => {
                let [a, b] = [0, 1].map(|n| self.source16(i, n).map(|value| value as i16));
                related(relation, &a, &b)
            }
            Number::I32 => {
                let [a, b] = [0, 1].map(|n| self.source32(i, n).map(|value| value as i32));
                related(relation, &a, &b)
            }
            Number::I64 => {
                let [a, b] = [0, 1].map(|n| match i.source[n] {
                    Operand::Literal(value) => [i64::from(value as i32); LANES],
                    _ => self.source64(i, n, false).map(|value| value as i64),
                });
                related(relation, &a, &b)
            }
        };
        let mask = if compare.complement { !mask } else { mask } & self.write_mask(i);
        self.set_scalar64(i.scalar_destination.into(), mask);
        if compare.exec {
            self.set_scalar64(EXEC, mask);
        }
        Ok(())
    }

    fn class(&self, i: &Instruction, number: Number) -> u64 {
        let wanted = self.source32(i, 1);
        let absolute = i.absolute & 1 == 1;
        let negate = i.negate & 1 == 1;
        let classes: [u32; LANES] = match number {
            Number::F16 => self.source16(i, 0).map(|bits| class(bits.into(), 5, 10, absolute, negate)),
            Number::F64 => self.source64(i, 0, true).map(|bits| class(bits, 11, 52, absolute, negate)),
            _ => self.source32(i, 0).map(|bits| class(bits.into(), 8, 23, absolute, negate)),
        };
        collect(|lane| wanted[lane] >> classes[lane] & 1 == 1)
    }
}

#[inline]
fn collect(f: impl Fn(usize) -> bool) -> u64 {
    (0..LANES).fold(0, |mask, lane| mask | u64::from(f(lane)) << lane)
}

#[inline]
fn related<T: PartialOrd + Copy>(relation: Relation, a: &[T; LANES], b: &[T; LANES]) -> u64 {
    match relation {
        Relation::False | Relation::Class => 0,
        Relation::Less => collect(|lane| a[lane] < b[lane]),
        Relation::Equal => collect(|lane| a[lane] == b[lane]),
        Relation::LessEqual => collect(|lane| a[lane] <= b[lane]),
        Relation::Greater => collect(|lane| a[lane] > b[lane]),
        Relation::GreaterEqual => collect(|lane| a[lane] >= b[lane]),
        Relation::LessGreater => collect(|lane| a[lane].partial_cmp(&b[lane]).is_some_and(Ordering::is_ne)),
        Relation::Ordered => collect(|lane| a[lane].partial_cmp(&b[lane]).is_some()),
    }
}

/// The bit of a class mask that a float falls under.
fn class(bits: u64, exponent: u32, mantissa: u32, absolute: bool, negate: bool) -> u32 {
    let negative = (bits >> (exponent + mantissa) & 1 == 1 && !absolute) != negate;
    let fraction = bits & ((1 << mantissa) - 1);
    let field = bits >> mantissa & ((1 << exponent) - 1);
    let distance = match (field, fraction) {
        (0, 0) => 0,
        (0, _) => 1,
        (field, 0) if field == (1 << exponent) - 1 => 3,
        (field, _) if field == (1 << exponent) - 1 => return (fraction >> (mantissa - 1) & 1) as u32,
        _ => 2,
    };
    if negative { 5 - distance } else { 6 + distance }
}
