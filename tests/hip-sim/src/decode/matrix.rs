//! The shapes of matrix products, read off their names.

/// Element types of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F16,
    Bf16,
    F32,
    Xf32,
    F64,
    I8,
    Fp8,
    Bf8,
    I32,
}

/// `v_mfma_*`: D\[M,N\] = A\[M,K\] * B\[K,N\] + C\[M,N\], in some number of independent blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    pub rows: u8,
    pub depth: u8,
    pub blocks: u8,
    pub accumulator: Element,
    pub a: Element,
    pub b: Element,
    /// 4:2 structured sparsity of A (`v_smfmac_*`); `depth` counts the dense matrix.
    pub sparse: bool,
}

/// `v_mfma_f32_32x32x4_2b_f16`, `v_smfmac_i32_16x16x64_i8`.
pub(super) fn matrix(name: &str) -> Option<Matrix> {
    let element = |name: &str| {
        Some(match name {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "f32" => Element::F32,
            "xf32" => Element::Xf32,
            "f64" => Element::F64,
            "i8" => Element::I8,
            "i32" => Element::I32,
            "fp8" => Element::Fp8,
            "bf8" => Element::Bf8,
            _ => return None,
        })
    };
    let mut parts = name.split('_').skip(1);
    let sparse = parts.next()? == "smfmac";
    let accumulator = element(parts.next()?)?;
    let mut shape = parts.next()?.split('x').map(|side| side.parse::<u8>().ok());
    let (rows, depth) = (shape.next()??, shape.nth(1)??);
    let mut next = parts.next()?;
    let mut blocks = 1;
    if let Some(count) = next.strip_suffix('b') {
        blocks = count.parse().ok()?;
        next = parts.next()?;
    }
    let a = element(next)?;
    let b = parts.next().map_or(Some(a), element)?;
    Some(Matrix { rows, depth, blocks, accumulator, a, b, sparse })
}
