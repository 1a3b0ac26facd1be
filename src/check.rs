//! Conditions on the arguments of operations.

use burn::{
    backend::{Dispatch, DispatchDevice},
    tensor::{DType, Device, Int, Tensor},
};

use crate::dispatch::Origin;
use crate::error::{Error, Result};

/// A shape error.
pub(crate) fn shape(
    op: &'static str,
    argument: &'static str,
    got: &[usize],
    expected: impl Into<String>,
) -> Error {
    Error::Shape { op, argument, got: format!("{got:?}"), expected: expected.into() }
}

/// Refuses a device that no backend of this build serves.
pub(crate) fn device(op: &'static str, argument: &'static str, device: &Device) -> Result<()> {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => Ok(()),
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => Ok(()),
        #[allow(unreachable_patterns)]
        other => Err(Error::Unsupported {
            op,
            argument,
            got: format!("{other:?}"),
            expected: "a device of a feature of burn-flashinfer: `flex`, `cpu`, `cuda`, `rocm` or `vulkan`"
                .into(),
        }),
    }
}

/// Checks that the operations can run on `device` with elements of type `dtype`.
///
/// Every operation checks this itself; a program may check before it loads gigabytes of weights.
///
/// # Errors
///
/// If no backend of this build serves the device, or the device has no such elements; the error says which it has.
pub fn check_support(device: &Device, dtype: DType) -> Result<()> {
    const OP: &str = "check_support";
    self::device(OP, "device", device)?;
    float(OP, "dtype", dtype, device)
}

/// Refuses two devices where one is needed.
pub(crate) fn same_device(
    op: &'static str,
    argument: &'static str,
    got: &Device,
    expected: &Device,
) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let [got, expected] = [got, expected].map(|device| format!("{device:?}"));
    Err(Error::Device { op, argument, got, expected: format!("{expected}, as the other arguments") })
}

/// Refuses an element type that no kernel, or not this device, can take.
pub(crate) fn float(op: &'static str, argument: &'static str, dtype: DType, device: &Device) -> Result<()> {
    let refuse = |expected: String| Err(Error::Dtype { op, argument, got: format!("{dtype:?}"), expected });
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return refuse("F32, F16 or BF16".into());
    }
    #[cfg(feature = "cube")]
    if let DispatchDevice::Cube(device) = device.clone().inner().as_dispatch()
        && let Some(expected) = crate::backend::unsupported_dtype(device, dtype)
    {
        return refuse(expected);
    }
    let _ = device;
    Ok(())
}

/// True for a device whose operations are kernels of CubeCL.
#[cfg(feature = "cube")]
pub(crate) fn is_cube(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_))
}

/// Refuses a device without integers of 64 bits.
pub(crate) fn wide_integers(op: &'static str, argument: &'static str, device: &Device) -> Result<()> {
    #[cfg(feature = "cube")]
    if let DispatchDevice::Cube(inner) = device.clone().inner().as_dispatch()
        && !crate::backend::has_wide_integers(inner)
    {
        let expected = "a device with integers of 64 bits".into();
        return Err(Error::Unsupported { op, argument, got: format!("{device:?}"), expected });
    }
    let _ = (op, argument, device);
    Ok(())
}

/// Refuses an epsilon that cannot be added to a mean of squares.
pub(crate) fn epsilon(op: &'static str, argument: &'static str, epsilon: f32) -> Result<()> {
    if epsilon >= 0.0 && epsilon.is_finite() {
        return Ok(());
    }
    let expected = "a finite number, at least 0".into();
    Err(Error::Value { op, argument, got: epsilon.to_string(), expected })
}

/// Refuses a device without tensors of bytes.
pub(crate) fn bytes(op: &'static str, argument: &'static str, device: &Device) -> Result<()> {
    #[cfg(feature = "cube")]
    if let DispatchDevice::Cube(inner) = device.clone().inner().as_dispatch()
        && !crate::backend::has_bytes(inner)
    {
        let expected = "a device with integers of 8 bits".into();
        return Err(Error::Unsupported { op, argument, got: format!("{device:?}"), expected });
    }
    let _ = (op, argument, device);
    Ok(())
}

/// The longest row that the device can sort, if there is a limit.
pub(crate) fn most_top_k(device: &Device) -> Option<usize> {
    #[cfg(feature = "cube")]
    if matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_)) {
        return Some(crate::backend::MAX_TOP_K);
    }
    let _ = device;
    None
}

/// Refuses two element types where one is needed.
pub(crate) fn same_dtype(
    op: &'static str,
    argument: &'static str,
    got: DType,
    expected: DType,
) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Dtype {
        op,
        argument,
        got: format!("{got:?}"),
        expected: format!("{expected:?}, as the other arguments"),
    })
}

/// Refuses a tensor through which a gradient would have to flow.
pub(crate) fn no_gradient<const D: usize>(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor<D>,
) -> Result<()> {
    // A tensor without autodiff is told without a copy of its handle.
    if tensor.is_autodiff() && Dispatch::is_tracked(&tensor.clone().into_dispatch()) {
        return Err(Error::Gradient { op, argument });
    }
    Ok(())
}

/// Refuses tensors of another type than f32, with a gradient, or on a device that is not supported.
pub(crate) fn f32s<const D: usize>(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor<D>,
) -> Result<()> {
    device(op, argument, &tensor.device())?;
    if tensor.dtype() != DType::F32 {
        let got = format!("{:?}", tensor.dtype());
        return Err(Error::Dtype { op, argument, got, expected: "F32".into() });
    }
    no_gradient(op, argument, tensor)
}

/// Refuses all but one scale, or one for each of `heads`.
pub(crate) fn scales(
    op: &'static str,
    argument: &'static str,
    scale: Tensor<1>,
    heads: usize,
) -> Result<Tensor<1>> {
    f32s(op, argument, &scale)?;
    if scale.dims() != [1] && scale.dims() != [heads] {
        let expected = if heads == 1 { "[1]".into() } else { format!("[1] or [{heads}], one for each head") };
        return Err(shape(op, argument, &scale.dims(), expected));
    }
    Ok(scale)
}

/// Refuses tensors that are not fp8, and devices without it.
pub(crate) fn codes<const D: usize>(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor<D, Int>,
) -> Result<()> {
    if tensor.dtype() != DType::U8 {
        let got = format!("{:?}", tensor.dtype());
        return Err(Error::Dtype { op, argument, got, expected: "U8".into() });
    }
    device(op, argument, &tensor.device())?;
    bytes(op, argument, &tensor.device())
}

/// All that does not concern the shape of the float arguments of one operation. The first one sets device and type.
pub(crate) struct Floats {
    op: &'static str,
    device: Device,
    dtype: DType,
    /// The device and backend of the results.
    pub(crate) origin: Origin,
}

impl Floats {
    pub(crate) fn first<const D: usize>(
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor<D>,
    ) -> Result<Self> {
        let (found, dtype) = (tensor.device(), tensor.dtype());
        device(op, argument, &found)?;
        float(op, argument, dtype, &found)?;
        no_gradient(op, argument, tensor)?;
        Ok(Self { op, device: found, dtype, origin: Origin::of(tensor) })
    }

    /// A tensor of the same type on the same device.
    pub(crate) fn like<const D: usize>(&self, argument: &'static str, tensor: &Tensor<D>) -> Result<()> {
        self.of(self.dtype, argument, tensor)
    }

    /// The type of the arguments.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the arguments.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor of this type on the same device.
    pub(crate) fn of<const D: usize>(
        &self,
        dtype: DType,
        argument: &'static str,
        tensor: &Tensor<D>,
    ) -> Result<()> {
        self.on_device(argument, &tensor.device())?;
        same_dtype(self.op, argument, tensor.dtype(), dtype)?;
        no_gradient(self.op, argument, tensor)
    }

    /// A tensor of type f32 on the same device.
    pub(crate) fn f32<const D: usize>(&self, argument: &'static str, tensor: &Tensor<D>) -> Result<()> {
        self.on_device(argument, &tensor.device())?;
        if tensor.dtype() != DType::F32 {
            let got = format!("{:?}", tensor.dtype());
            return Err(Error::Dtype { op: self.op, argument, got, expected: "F32".into() });
        }
        no_gradient(self.op, argument, tensor)
    }

    pub(crate) fn on_device(&self, argument: &'static str, device: &Device) -> Result<()> {
        same_device(self.op, argument, device, &self.device)
    }
}
