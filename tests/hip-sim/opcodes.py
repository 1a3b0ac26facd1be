#!/usr/bin/env python3
"""Writes src/decode/opcodes.rs: asks llvm-mc to disassemble every opcode of every gfx942 encoding."""
import re
import subprocess

V, S = 256, 0  # the 9-bit source codes of v0 and s0
LITERAL = 0x3F800000


def words(value, count):
    return [(value >> (32 * i)) & 0xFFFFFFFF for i in range(count)]


# format -> (number of opcodes, list of functions opcode -> words); the first that disassembles wins.
FORMATS = {
    "Sop2": (96, [lambda o: [0x80000000 | o << 23 | 4 << 16 | 2 << 8 | 6], lambda o: [0x80000000 | o << 23 | 2 << 8 | 6]]),
    "Sopk": (24, [lambda o: [0xB0000000 | o << 23 | 4 << 16 | 1], lambda o: [0xB0000000 | o << 23 | 1, LITERAL]]),
    "Sop1": (256, [lambda o: [0xBE800000 | 4 << 16 | o << 8 | 2], lambda o: [0xBE800000 | 4 << 16 | o << 8],
                   lambda o: [0xBE800000 | o << 8 | 2]]),
    "Sopc": (128, [lambda o: [0xBF000000 | o << 16 | 2 << 8 | 4]]),
    "Sopp": (128, [lambda o: [0xBF800000 | o << 16]]),
    "Smem": (256, [lambda o: words(0xC0000000 | o << 18 | 1 << 17 | 4 << 6 | 2, 2),
                   lambda o: words(0xC0000000 | o << 18 | 4 << 6, 2), lambda o: words(0xC0000000 | o << 18, 2)]),
    "Vop2": (62, [lambda o: [o << 25 | 2 << 17 | 4 << 9 | V + 6], lambda o: [o << 25 | 2 << 17 | 4 << 9 | V + 6, LITERAL]]),
    "Vop1": (256, [lambda o: [0x7E000000 | 2 << 17 | o << 9 | V + 4], lambda o: [0x7E000000 | o << 9]]),
    "Vopc": (256, [lambda o: [0x7C000000 | o << 17 | 2 << 9 | V + 4]]),
    "Vop3": (1024, [
        lambda o: [0xD0000000 | o << 16 | 4, V + 2 | V + 4 << 9 | V + 6 << 18],
        lambda o: [0xD0000000 | o << 16 | 4, V + 2 | V + 4 << 9],
        lambda o: [0xD0000000 | o << 16 | 4, V + 2],
        lambda o: [0xD0000000 | o << 16 | 4, S + 2 | S + 4 << 9],
        lambda o: [0xD0000000 | o << 16 | 4, V + 2 | S + 4 << 9],
    ]),
    "Vop3p": (128, [
        lambda o: [0xD3800000 | o << 16 | 64, V + 64 | V + 128 << 9 | V + 192 << 18],
        lambda o: [0xD3804000 | o << 16 | 64, V + 64 | 0x18000000 | V + 128 << 9 | V + 192 << 18],
        lambda o: [0xD3804000 | o << 16 | 64, V + 64 | 0x18000000 | V + 128 << 9],
        lambda o: [0xD3804000 | o << 16 | 64, V + 64 | 0x18000000],
        lambda o: [0xD3800000 | o << 16 | 64, V + 64],
    ]),
    "Ds": (256, [lambda o: [0xD8000000 | o << 17, 2 | 4 << 8 | 8 << 16 | 16 << 24],
                 lambda o: [0xD8000000 | o << 17, 2 | 4 << 8 | 16 << 24],
                 lambda o: [0xD8000000 | o << 17, 2 | 4 << 8],
                 lambda o: [0xD8000000 | o << 17, 0],
                 lambda o: [0xD8010000 | o << 17, 0]]),
    "Flat": (128, [lambda o: [0xDC000000 | o << 18, 2 | 4 << 8 | 8 << 24],
                   lambda o: [0xDC000000 | o << 18, 2 | 4 << 8],
                   lambda o: [0xDC000000 | o << 18, 2 | 8 << 24]]),
    "Global": (128, [lambda o: [0xDC008000 | o << 18, 2 | 4 << 8 | 127 << 16 | 8 << 24],
                     lambda o: [0xDC008000 | o << 18, 2 | 4 << 8 | 127 << 16],
                     lambda o: [0xDC008000 | o << 18, 2 | 127 << 16]]),
    "Scratch": (128, [lambda o: [0xDC006000 | o << 18, 2 | 4 << 8 | 127 << 16 | 8 << 24],
                      lambda o: [0xDC006000 | o << 18, 2 | 4 << 8 | 127 << 16],
                      lambda o: [0xDC006000 | o << 18, 2 | 127 << 16]]),
    "Mubuf": (128, [lambda o: [0xE0001000 | o << 18, 2 | 4 << 8 | 2 << 16 | 128 << 24],
                    lambda o: [0xE0000000 | o << 18, 0 | 128 << 24], lambda o: [0xE0000000 | o << 18, 0],
                    lambda o: [0xE0011000 | o << 18, 2 | 2 << 16 | 128 << 24],
                    lambda o: [0xE0010000 | o << 18, 2 << 16 | 128 << 24]]),
    "Mtbuf": (16, [lambda o: [0xE8001000 | 1 << 19 | o << 15, 2 | 4 << 8 | 2 << 16 | 128 << 24]]),
}


def disassemble(cases):
    """One llvm-mc run for all cases: a bracketed list is one instruction or nothing."""
    text = "".join(
        "[" + ",".join(hex(b) for w in c for b in w.to_bytes(4, "little")) + "]\n" for c in cases
    )
    run = subprocess.run(
        ["llvm-mc-19", "-arch=amdgcn", "-mcpu=gfx942", "-disassemble", "-show-encoding"],
        input=text, capture_output=True, text=True)
    found = {}
    for line in run.stdout.splitlines():
        m = re.match(r"\s+(\w+).*; encoding: \[(.*)\]", line)
        if m:
            found[tuple(int(b, 16) for b in m.group(2).split(","))] = m.group(1)
    return found


def strip(name):
    return re.sub(r"_(e32|e64|sdwa|dpp|e64_dpp)$", "", name)


def table(fmt):
    count, fills = FORMATS[fmt]
    found = {}
    for fill in fills:
        cases = {o: fill(o) for o in range(count) if o not in found}
        names = disassemble(cases.values())
        for o, c in cases.items():
            key = tuple(b for w in c for b in w.to_bytes(4, "little"))
            if key in names:
                found[o] = strip(names[key])
    return found


def main():
    tables = {f: table(f) for f in FORMATS}
    # VOP3 repeats VOPC, VOP2 and VOP1 at fixed distances: the decoder maps those back.
    # v_cndmask and the *c ops differ in operands but not in name.
    base = {**tables["Vopc"]}
    base.update({0x100 + o: n for o, n in tables["Vop2"].items()})
    base.update({0x140 + o: n for o, n in tables["Vop1"].items()})
    for o in list(tables["Vop3"]):
        if o >= 0x380:
            del tables["Vop3"][o]
        elif base.get(o) == tables["Vop3"][o]:
            del tables["Vop3"][o]
    seen = {}
    out = ["// Written by opcodes.py from llvm-mc; do not edit.", "", "opcodes! {"]
    for fmt, ops in tables.items():
        out.append(f"    {fmt} {{")
        line = "       "
        for o in sorted(ops):
            if ops[o] in seen:
                raise SystemExit(f"{ops[o]} is in {seen[ops[o]]} and {fmt} {o:#x}")
            seen[ops[o]] = fmt
            item = f" {o:#x} {ops[o]},"
            if len(line) + len(item) > 108:
                out.append(line)
                line = "       "
            line += item
        out.append(line)
        out.append("    }")
    out.append("}")
    open("src/decode/opcodes.rs", "w").write("\n".join(out) + "\n")
    print({f: len(t) for f, t in tables.items()})


main()
