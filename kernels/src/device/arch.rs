use cubecl::client::Client;

/// The instruction set of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// NVIDIA, by compute capability: 90 is Hopper.
    Sm(u32),
    /// AMD, by the digits of its name: `0x942` is gfx942.
    Gfx(u32),
    /// Any other, including a CPU: only the instructions that CubeCL has everywhere.
    Other,
}

impl Arch {
    /// The architecture of a device.
    pub fn of(client: &Client) -> Self {
        Self::named(&client.properties().identity.fingerprint)
    }

    /// The architecture that CubeCL's fingerprint of a device names: `ptx_sm90`, `hip-kernel_gfx942:sramecc+`.
    pub fn named(fingerprint: &str) -> Self {
        let digits = |name: &str, radix| {
            let end = name.find(|c: char| !c.is_digit(radix)).unwrap_or(name.len());
            u32::from_str_radix(&name[..end], radix).ok()
        };
        if let Some((_, name)) = fingerprint.split_once("sm") {
            return digits(name.trim_start_matches('_'), 10).map_or(Self::Other, Self::Sm);
        }
        match fingerprint.split_once("gfx") {
            Some((_, name)) => digits(name, 16).map_or(Self::Other, Self::Gfx),
            None => Self::Other,
        }
    }
}

/// The vendor whose instructions a kernel uses, if vendors differ in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Machine {
    /// NVIDIA, since Ampere.
    Nvidia,
    /// AMD CDNA.
    Amd,
    /// Any.
    Portable,
}

impl Machine {
    /// The vendor of an architecture.
    pub(crate) fn of(arch: Arch) -> Self {
        if Instruction::MmaSync.exists_on(arch) {
            Self::Nvidia
        } else if Instruction::MfmaF16.exists_on(arch) {
            Self::Amd
        } else {
            Self::Portable
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sm(capability) => write!(f, "sm_{capability}"),
            Self::Gfx(name) => write!(f, "gfx{name:x}"),
            Self::Other => write!(f, "a device without them"),
        }
    }
}

/// Instructions that kernels need beyond those of CubeCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// `v_mfma_f32_16x16x16_f16`, `v_mfma_f32_32x32x8_f16`.
    MfmaF16,
    /// `v_mfma_f32_16x16x16_bf16`, `v_mfma_f32_32x32x8_bf16`.
    MfmaBf16,
    /// `v_mfma_f32_16x16x32_fp8_fp8`, `v_mfma_f32_32x32x16_fp8_fp8`, on e4m3 of the FNUZ encoding.
    MfmaFp8,
    /// `mma.sync` m16n8k16 of f16 and bf16, `ldmatrix`, `cp.async`.
    MmaSync,
    /// `wgmma` of f16 and bf16, `setmaxnreg`, and barriers in shared memory with phases: of sm_90a, whose
    /// successors have other matrix instructions.
    Wgmma,
    /// Conversions of f32 to and from e4m3 and e5m2 as the OCP defines them: `cvt.rn.satfinite.e4m3x2.f32` and its kin.
    CvtFp8,
    /// The same for the FNUZ encodings, which are biased by one more and have no infinity and no negative zero:
    /// `v_cvt_pk_fp8_f32` and its kin.
    CvtFp8Fnuz,
}

impl Instruction {
    /// True if an architecture has it.
    pub fn exists_on(self, arch: Arch) -> bool {
        match (self, arch) {
            (Self::MfmaF16, Arch::Gfx(name)) => matches!(name, 0x908 | 0x90a | 0x940..=0x942),
            (Self::MfmaBf16, Arch::Gfx(name)) => matches!(name, 0x90a | 0x940..=0x942),
            (Self::MmaSync, Arch::Sm(capability)) => capability >= 80,
            (Self::Wgmma, Arch::Sm(capability)) => capability == 90,
            (Self::CvtFp8, Arch::Sm(capability)) => capability >= 89,
            (Self::CvtFp8Fnuz | Self::MfmaFp8, Arch::Gfx(name)) => matches!(name, 0x940..=0x942),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints() {
        assert_eq!(Arch::named("ptx_sm90"), Arch::Sm(90));
        assert_eq!(Arch::named("hip-kernel_gfx942:sramecc+:xnack-"), Arch::Gfx(0x942));
        assert_eq!(Arch::named("hip-kernel_gfx90a"), Arch::Gfx(0x90a));
        assert_eq!(Arch::named("hip-kernel_gfx1100"), Arch::Gfx(0x1100));
        assert_eq!(Arch::named("cpu"), Arch::Other);
    }

    #[test]
    fn who_has_what() {
        let has = |arch| {
            use Instruction::*;
            [MfmaF16, MfmaBf16, MfmaFp8, MmaSync, Wgmma, CvtFp8, CvtFp8Fnuz].map(|i| i.exists_on(arch))
        };
        assert_eq!(has(Arch::Gfx(0x942)), [true, true, true, false, false, false, true]);
        assert_eq!(has(Arch::Gfx(0x90a)), [true, true, false, false, false, false, false]);
        assert_eq!(has(Arch::Gfx(0x908)), [true, false, false, false, false, false, false]);
        assert_eq!(has(Arch::Gfx(0x1100)), [false; 7]);
        assert_eq!(has(Arch::Sm(90)), [false, false, false, true, true, true, false]);
        assert_eq!(has(Arch::Sm(100)), [false, false, false, true, false, true, false]);
        assert_eq!(has(Arch::Sm(86)), [false, false, false, true, false, false, false]);
        assert_eq!(has(Arch::Sm(75)), [false; 7]);
        assert_eq!(has(Arch::Other), [false; 7]);
        let refused = Instruction::MmaSync.check("attention", Arch::Gfx(0x942));
        assert_eq!(
            refused.map_err(|r| r.to_string()),
            Err("attention: MmaSync does not exist on gfx942".into())
        );
    }
}
