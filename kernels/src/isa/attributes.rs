//! Strings that tell apart the instructions of one operation.

use cubecl_ir::prelude::*;
use pliron::builtin::attributes::StringAttr;
use pliron::dict_key;
use pliron::identifier::Identifier;

dict_key!(
    /// The text of a PTX instruction, or the name of an intrinsic.
    TEXT, "flashinfer_text"
);
dict_key!(
    /// The registers of a PTX instruction.
    REGISTERS, "flashinfer_registers"
);
dict_key!(
    /// The name of a builtin of clang.
    BUILTIN, "flashinfer_builtin"
);
dict_key!(
    /// The immediates of an intrinsic.
    IMMEDIATES, "flashinfer_immediates"
);

/// A new operation with these strings.
pub(super) fn operation<O: Op>(
    ctx: &mut Context,
    result: Vec<TypeHandle>,
    operands: Vec<Value>,
    strings: &[(&Identifier, &str)],
) -> Ptr<Operation> {
    let op = Operation::new(ctx, O::get_concrete_op_info(), result, operands, vec![], 0);
    for &(key, value) in strings {
        op.deref_mut(ctx).attributes.set(key.clone(), StringAttr::from(value));
    }
    op
}

/// One of the strings of an operation.
#[cfg(feature = "compilers")]
pub(super) fn string(ctx: &Context, op: Ptr<Operation>, key: &Identifier) -> String {
    let op = op.deref(ctx);
    let value = op.attributes.get::<StringAttr>(key);
    value.map_or_else(String::new, |value| value.as_str().to_owned())
}
