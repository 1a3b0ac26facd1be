//! From an operation to the text of an instruction, once for CubeCL's LLVM compiler and once for its C++ one.

use cubecl_cpp::shared::{CppValue, ty::TypeExtCPP};
use cubecl_ir::prelude::*;
use cubecl_llvm::LlvmTarget;
use cubecl_llvm::shared::intrinsic::{call_op, i32_const_op};
use cubecl_llvm::shared::to_llvm::prelude::*;
use pliron_llvm::llvm_attrs::{LlvmAttrValue, LlvmAttributesAttr};
use pliron_llvm::ops as llvm;
use pliron_llvm::types::{self, StructLayout, StructType};

use super::nvidia::Register;

/// Puts an operation where the rewriter is, for its value.
macro_rules! put {
    ($ctx:expr, $rw:expr, $op:expr) => {{
        let op = $op;
        insert($ctx, $rw, &op)
    }};
}

#[derive(Debug, thiserror::Error)]
#[error("{0} does not exist on this target")]
struct Foreign(String);

impl Register {
    fn cpp(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::B64 => "unsigned long long",
            _ => "unsigned",
        }
    }
}

/// One PTX instruction. `$0`, `$1`, … are its outputs, then its inputs, a vector or an array of them being a
/// register for each element.
pub(super) struct Ptx {
    pub text: String,
    /// Class and number of the registers of the result.
    pub output: Option<(Register, usize)>,
    /// The value whose registers become those of the result.
    pub updated: Option<Value>,
    pub inputs: Vec<(Register, usize, Value)>,
    /// Reads or writes memory, or waits.
    pub effect: bool,
}

impl Ptx {
    fn constraints(&self) -> String {
        let outputs =
            self.output.iter().flat_map(|&(class, count)| vec![format!("={}", class.constraint()); count]);
        let inputs =
            self.inputs.iter().flat_map(|&(class, count, _)| vec![class.constraint().to_string(); count]);
        // Behind the others, so that text is numbered the same with and without.
        let updated = match (&self.updated, self.output) {
            (Some(_), Some((_, count))) => (0..count).map(|i| i.to_string()).collect(),
            _ => vec![],
        };
        let clobbers = self.effect.then(|| "~{memory}".to_owned());
        outputs.chain(inputs).chain(updated).chain(clobbers).collect::<Vec<_>>().join(",")
    }

    /// The instruction as inline assembly of LLVM.
    pub(super) fn to_llvm(
        &self,
        ctx: &mut Context,
        rw: &mut DialectConversionRewriter,
        old: Ptr<Operation>,
    ) -> Result<()> {
        if ctx.target() != LlvmTarget::Nvptx {
            return pliron::input_err!(old.deref(ctx).loc(), Foreign(self.text.clone()));
        }
        let mut inputs = vec![];
        for &(class, count, value) in &self.inputs {
            if class == Register::Global {
                let global = types::PointerType::get(ctx, 1).into();
                inputs.push(put!(ctx, rw, llvm::AddrSpaceCastOp::new(ctx, value, global)));
            } else {
                inputs.extend(registers_of(ctx, rw, value, count)?);
            }
        }
        if let (Some(updated), Some((_, count))) = (self.updated, self.output) {
            inputs.extend(registers_of(ctx, rw, updated, count)?);
        }
        let register: TypeHandle = match self.output {
            Some((Register::F32, _)) => FP32Type::get(ctx).into(),
            _ => IntegerType::get(ctx, 32, Signedness::Signless).into(),
        };
        let result = match self.output {
            None => VoidType::get(ctx).into(),
            Some((_, 1)) => register,
            Some((_, n)) => StructType::get_unnamed(ctx, (vec![register; n], StructLayout::Unpacked)).into(),
        };
        let asm = llvm::InlineAsmOp::new(ctx, result, inputs, &self.text, &self.constraints(), self.effect);
        // All lanes take part: the compiler must not move it into a branch.
        let mut attributes = LlvmAttributesAttr::new();
        attributes.set("convergent", LlvmAttrValue::Unit);
        asm.set_attr_llvm_inline_asm_attrs(ctx, attributes);
        rw.insert_op(ctx, &asm);
        let Some((_, count)) = self.output else {
            rw.erase_operation(ctx, old);
            return Ok(());
        };
        let mut value = asm.get_operation().deref(ctx).get_result(0);
        if count > 1 {
            let mut registers = Vec::with_capacity(count);
            for i in 0..count {
                registers.push(put!(ctx, rw, llvm::ExtractValueOp::new(ctx, value, vec![i as u32])?));
            }
            let ty = old.deref(ctx).get_result(0).get_type(ctx);
            let ty = cube_type_to_llvm(ctx, ty);
            value = made_of(ctx, rw, ty, register, &registers);
        }
        rw.replace_operation_with_values(ctx, old, vec![value]);
        Ok(())
    }

    /// The instruction as inline assembly of CUDA C++.
    pub(super) fn to_cpp(&self, ctx: &Context, old: Ptr<Operation>) -> String {
        let text = self.text.replace('$', "%");
        let element = |class: Register, name: String, i: usize| {
            format!("reinterpret_cast<{}*>(&{name})[{i}]", class.cpp())
        };
        let mut outputs = vec![];
        if let Some((class, count)) = self.output {
            for i in 0..count {
                let way = if self.updated.is_some() { '+' } else { '=' };
                outputs.push(format!(
                    "\"{way}{}\"({})",
                    class.constraint(),
                    element(class, "result".into(), i)
                ));
            }
        }
        let mut inputs = vec![];
        for &(class, count, value) in &self.inputs {
            let name = value.name(ctx).to_string();
            for i in 0..count {
                let operand = match class {
                    Register::Global => format!("__cvta_generic_to_global({name})"),
                    _ => {
                        element(class, format!("const_cast<{}&>({name})", value.get_type(ctx).to_cpp(ctx)), i)
                    }
                };
                inputs.push(format!("\"{}\"({operand})", class.constraint()));
            }
        }
        let volatile = if self.effect { " volatile" } else { "" };
        let clobbers = if self.effect { " : \"memory\"" } else { "" };
        let asm =
            format!("asm{volatile}(\"{text}\" : {} : {}{clobbers});", outputs.join(", "), inputs.join(", "));
        if self.output.is_none() {
            return format!("{asm}\n");
        }
        let result = old.deref(ctx).get_result(0);
        let ty = result.get_type(ctx).to_cpp(ctx);
        let updated = self.updated.map_or_else(String::new, |updated| format!(" = {}", updated.name(ctx)));
        format!("{} = [&]{{ {ty} result{updated}; {asm} return result; }}();\n", result.fmt_left(ctx))
    }
}

/// Elements of a vector that fills an array, if the type is such an array.
fn array_of(ctx: &Context, ty: TypeHandle) -> Option<(TypeHandle, usize)> {
    let ty = ty.deref(ctx);
    let element = ty.downcast_ref::<types::ArrayType>()?.elem_type();
    let lanes =
        element.deref(ctx).downcast_ref::<types::VectorType>().map_or(1, |vector| vector.num_elements());
    Some((element, lanes as usize))
}

/// The elements of a scalar, a vector, or an array of either.
fn registers_of(
    ctx: &mut Context,
    rw: &mut DialectConversionRewriter,
    value: Value,
    count: usize,
) -> Result<Vec<Value>> {
    let ty = value.get_type(ctx);
    if let Some((_, lanes)) = array_of(ctx, ty) {
        let mut registers = Vec::with_capacity(count);
        for i in 0..count / lanes {
            let element = put!(ctx, rw, llvm::ExtractValueOp::new(ctx, value, vec![i as u32])?);
            registers.extend(registers_of(ctx, rw, element, lanes)?);
        }
        return Ok(registers);
    }
    if count == 1 {
        return Ok(vec![value]);
    }
    let mut registers = Vec::with_capacity(count);
    for i in 0..count {
        let at = put!(ctx, rw, i32_const_op(ctx, i as i32));
        registers.push(put!(ctx, rw, llvm::ExtractElementOp::new(ctx, value, at)));
    }
    Ok(registers)
}

/// The reverse of [`registers_of`], of LLVM's type `ty`.
fn made_of(
    ctx: &mut Context,
    rw: &mut DialectConversionRewriter,
    ty: TypeHandle,
    register: TypeHandle,
    registers: &[Value],
) -> Value {
    if let Some((element, lanes)) = array_of(ctx, ty) {
        let mut array = put!(ctx, rw, llvm::PoisonOp::new(ctx, ty));
        for (i, registers) in registers.chunks(lanes).enumerate() {
            let element = made_of(ctx, rw, element, register, registers);
            array = put!(ctx, rw, llvm::InsertValueOp::new(ctx, array, element, vec![i as u32]));
        }
        return array;
    }
    if let [one] = registers {
        return *one;
    }
    let vector = types::VectorType::get(ctx, register, registers.len() as u32, VectorTypeKind::Fixed).into();
    let mut value = put!(ctx, rw, llvm::PoisonOp::new(ctx, vector));
    for (i, &element) in registers.iter().enumerate() {
        let at = put!(ctx, rw, i32_const_op(ctx, i as i32));
        value = put!(ctx, rw, llvm::InsertElementOp::new(ctx, value, element, at));
    }
    value
}

/// Calls an intrinsic of AMDGPU in place of an operation. Immediates, each with its bits, follow the operands.
pub(super) fn amdgcn(
    ctx: &mut Context,
    rw: &mut DialectConversionRewriter,
    old: Ptr<Operation>,
    intrinsic: &str,
    mut operands: Vec<Value>,
    immediates: &[(usize, usize)],
) -> Result<()> {
    if ctx.target() != LlvmTarget::AmdGpu {
        return pliron::input_err!(old.deref(ctx).loc(), Foreign(intrinsic.to_owned()));
    }
    for &(immediate, bits) in immediates {
        operands.push(match bits {
            1 => insert_bool_const(ctx, rw, immediate == 1),
            _ => insert_int_const(ctx, rw, bits as u32, (immediate as i64).into()),
        });
    }
    let results = old.deref(ctx).get_num_results();
    let ty = match results {
        0 => VoidType::get(ctx).into(),
        _ => {
            let ty = old.deref(ctx).get_result(0).get_type(ctx);
            cube_type_to_llvm(ctx, ty)
        }
    };
    let call = call_op(ctx, intrinsic, ty, operands);
    rw.insert_op(ctx, &call);
    if results == 0 {
        rw.erase_operation(ctx, old);
    } else {
        let value = call.get_operation().deref(ctx).get_result(0);
        rw.replace_operation_with_values(ctx, old, vec![value]);
    }
    Ok(())
}

/// Four elements of 16 bits as integers.
pub(super) fn as_shorts(ctx: &mut Context, rw: &mut DialectConversionRewriter, value: Value) -> Value {
    let short = IntegerType::get(ctx, 16, Signedness::Signless).into();
    let shorts = types::VectorType::get(ctx, short, 4, VectorTypeKind::Fixed).into();
    put!(ctx, rw, llvm::BitcastOp::new(ctx, value, shorts))
}

/// Two words as one integer.
pub(super) fn as_long(ctx: &mut Context, rw: &mut DialectConversionRewriter, value: Value) -> Value {
    let long = IntegerType::get(ctx, 64, Signedness::Signless).into();
    put!(ctx, rw, llvm::BitcastOp::new(ctx, value, long))
}

/// A generic pointer into shared memory as the number of its byte there.
pub(super) fn shared_address_to_llvm(
    ctx: &mut Context,
    rw: &mut DialectConversionRewriter,
    old: Ptr<Operation>,
    pointer: Value,
) -> Result<()> {
    let shared = types::PointerType::get(ctx, 3).into();
    let pointer = put!(ctx, rw, llvm::AddrSpaceCastOp::new(ctx, pointer, shared));
    let word = IntegerType::get(ctx, 32, Signedness::Signless).into();
    let address = put!(ctx, rw, llvm::PtrToIntOp::new(ctx, pointer, word));
    rw.replace_operation_with_values(ctx, old, vec![address]);
    Ok(())
}

/// The function of LLVM that an operation is in, for operations of NVIDIA's kernels that change it.
fn kernel_of(ctx: &Context, op: Ptr<Operation>, name: &str) -> Result<llvm::FuncOp> {
    if ctx.target() == LlvmTarget::Nvptx {
        let mut parent = op.deref(ctx).get_parent_op(ctx);
        while let Some(op) = parent {
            if let Some(function) = op.as_op::<llvm::FuncOp>(ctx) {
                return Ok(function);
            }
            parent = op.deref(ctx).get_parent_op(ctx);
        }
    }
    pliron::input_err!(op.deref(ctx).loc(), Foreign(name.to_owned()))
}

/// Gives the function that an operation is in an attribute of LLVM, in place of the operation. When functions
/// are LLVM's.
pub(super) fn set_function_attribute(
    ctx: &mut Context,
    rw: &mut DialectConversionRewriter,
    old: Ptr<Operation>,
    name: &str,
    value: String,
) -> Result<()> {
    let function = kernel_of(ctx, old, name)?;
    let attributes = function.get_attr_llvm_func_attrs(ctx).map(|attributes| attributes.clone());
    let mut attributes = attributes.unwrap_or_default();
    attributes.set(name, LlvmAttrValue::Str(value));
    function.set_attr_llvm_func_attrs(ctx, attributes);
    rw.erase_operation(ctx, old);
    Ok(())
}

/// The address of a parameter of 128 bytes, in place of an operation. When functions are LLVM's.
///
/// The parameter becomes a vector of 128 bytes, aligned to as many, of which no instruction takes the value: the
/// attributes of a parameter of LLVM (`byval`) cannot be reached from here.
pub(super) fn parameter_address(
    ctx: &mut Context,
    rw: &mut DialectConversionRewriter,
    old: Ptr<Operation>,
    index: usize,
) -> Result<()> {
    let function = kernel_of(ctx, old, "a tensor map")?;
    let long = IntegerType::get(ctx, 64, Signedness::Signless).into();
    let bytes: TypeHandle = types::VectorType::get(ctx, long, 16, VectorTypeKind::Fixed).into();
    let (result, mut arguments, variadic) = {
        let ty = function.get_type(ctx);
        let ty = ty.deref(ctx);
        (ty.result_type(), ty.arg_types().clone(), ty.is_var_arg())
    };
    arguments[index] = bytes;
    let ty = FuncType::get(ctx, result, arguments, variadic);
    function.set_attr_llvm_func_type(ctx, TypeAttr::new(ty.into()));
    if let Some(entry) = function.get_entry_block(ctx) {
        let argument = entry.deref(ctx).get_argument(index);
        argument.set_type(ctx, bytes);
    }
    let name = function.get_symbol_name(ctx);
    let text = format!("{{ .reg .b64 p; mov.b64 p, {name}_param_{index}; cvta.param.u64 $0, p; }}");
    let asm = llvm::InlineAsmOp::new(ctx, long, vec![], &text, "=l", false);
    rw.insert_op(ctx, &asm);
    let address = asm.get_operation().deref(ctx).get_result(0);
    rw.replace_operation_with_values(ctx, old, vec![address]);
    Ok(())
}
