//! Calls for the element type of a tensor. The caller imports the types.

/// Calls a function for the element type of a tensor. `check::float` lets no other type through.
macro_rules! by_dtype {
    ($dtype:expr, $module:ident::$function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F16 => $module::$function::<f16>($($argument),*),
            DType::BF16 => $module::$function::<bf16>($($argument),*),
            _ => $module::$function::<f32>($($argument),*),
        }
    };
}

/// Calls a function for the element type of a tensor: rows of that type, or f32 rows before the rounding to
/// fp8.
macro_rules! rounded {
    ($rounding:expr, $dtype:expr, $module:ident::$function:ident($($argument:expr),*)) => {
        match (codes_of_rows($rounding), $dtype) {
            (None, DType::F16) => Rows::Floats($module::$function::<f16, f16>($($argument),*)),
            (None, DType::BF16) => Rows::Floats($module::$function::<bf16, bf16>($($argument),*)),
            (None, _) => Rows::Floats($module::$function::<f32, f32>($($argument),*)),
            (Some(codes), dtype) => {
                let wide = match dtype {
                    DType::F16 => $module::$function::<f16, f32>($($argument),*),
                    DType::BF16 => $module::$function::<bf16, f32>($($argument),*),
                    _ => $module::$function::<f32, f32>($($argument),*),
                };
                Rows::Codes(pages::quantized(wide, &codes))
            }
        }
    };
}

pub(super) use {by_dtype, rounded};
