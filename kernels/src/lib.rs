//! CubeCL kernels of burn-flashinfer.
