//! The devices that this build can run on.

use std::panic;
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow, bail, ensure};
use burn::tensor::{Device, Tensor};
use clap::ValueEnum;

/// A kind of device; all have a feature of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// This processor, in pure Rust
    Flex,
    /// An NVIDIA GPU
    Cuda,
    /// An AMD GPU, through HIP
    Rocm,
    /// Any GPU with a Vulkan driver
    Vulkan,
    /// This processor, through CubeCL and LLVM
    Cpu,
}

impl DeviceKind {
    fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Vulkan => "vulkan",
            Self::Cpu => "cpu",
        }
    }

    /// True if its runtime has graphs of its own, of which each device may still refuse one.
    pub fn replays_graphs(self) -> bool {
        matches!(self, Self::Cuda | Self::Rocm)
    }

    /// The device, if the build has its kind.
    fn get(self) -> Option<Device> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Some(Device::flex()),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(Device::cuda(0)),
            #[cfg(feature = "rocm")]
            Self::Rocm => Some(Device::rocm(0)),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Some(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cpu")]
            Self::Cpu => Some(Device::cpu()),
            #[allow(unreachable_patterns, reason = "a build with every device has none left")]
            _ => None,
        }
    }
}

/// Opens a device, or else the first kind that the build has, and sees whether it works.
pub fn open(kind: Option<DeviceKind>) -> Result<(DeviceKind, Device)> {
    let opened = match kind {
        Some(kind) => quietly(|| kind.get()).map(|device| (kind, device)),
        None => {
            let first = DeviceKind::value_variants().iter().find_map(|&kind| Some((kind, kind.get()?)));
            Ok(first.map_or((DeviceKind::Flex, None), |(kind, device)| (kind, Some(device))))
        }
    };
    let failed = |kind: DeviceKind, why: String| anyhow!("the device `{}` does not work: {why}", kind.name());
    let (kind, device) = opened.map_err(|why| failed(kind.unwrap_or(DeviceKind::Flex), why))?;
    let Some(device) = device else {
        bail!("this build has no `{0}`; rebuild with `--features {0}`", kind.name());
    };
    quietly(|| probe(&device))
        .and_then(|result| result.map_err(|error| format!("{error:#}")))
        .map_err(|why| failed(kind, why))?;
    tracing::debug!(kind = kind.name(), ?device, "device");
    Ok((kind, device))
}

fn probe(device: &Device) -> Result<()> {
    let sum = Tensor::<1>::from_data([1.0f32, 2.0], device) + 1.0;
    let sum = sum.try_into_vec_as::<f32>()?;
    ensure!(sum == [2.0, 3.0], "it computed {sum:?} for [1, 2] + 1");
    Ok(())
}

/// A missing driver or GPU, or one out of memory, ends in a panic inside the backend, maybe on a thread of its own. This
/// gives the message of the first one instead, and prints nothing.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let message = Arc::new(Mutex::new(None::<String>));
    let hook = panic::take_hook();
    panic::set_hook(Box::new({
        let message = message.clone();
        move |info| {
            let text = info.payload_as_str().unwrap_or("no reason given").to_owned();
            tracing::debug!(%text, location = ?info.location(), "panic");
            if let Ok(mut message) = message.lock() {
                message.get_or_insert(text);
            }
        }
    }));
    let result = panic::catch_unwind(panic::AssertUnwindSafe(work));
    panic::set_hook(hook);
    result.map_err(|_| {
        let message = message.lock().ok().and_then(|message| message.clone());
        message.unwrap_or_else(|| "no reason given".to_owned())
    })
}
