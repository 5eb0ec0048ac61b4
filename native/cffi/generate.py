# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the C source of an extension module: what the contract headers declare, made callable from Python.

Usage: generate.py INCLUDE_DIRECTORY OUTPUT.c MODULE [HEADER ...], with headers beyond those below.

The headers are the only place where a function is declared; this script just takes out what cffi's parser does not
know: comments, directives other than whole-number constants, inline functions.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

# In dependency order. Headers that are not named here are C's own business.
HEADERS = (
    "page",
    "status",
    "digest",
    "sharing",
    "similarity",
    "compress",
    "dense",
    "swap",
    "store",
    "rebuild",
    "encode",
    "hypervisor",
    "machine",
    "program",
    "machine_client",
    "latency",
    "pager",
    "pager_queue",
)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
CONSTANT = re.compile(r"^#define (DE_\w+)\s+(\w+)$")


def declarations(text: str, constants: dict[str, str]) -> str:
    """One header as cffi's cdef() takes it; constants it defines are added to `constants` and used in place."""
    lines = []
    for line in COMMENT.sub("", text).replace("\\\n", " ").splitlines():
        if match := CONSTANT.match(line.strip()):
            name, value = match.groups()
            constants[name] = constants.get(value, value.rstrip("uUlL"))
            lines.append(f"static const unsigned int {name};")
        elif not line.startswith("#"):
            lines.append(re.sub(r"\bDE_\w+\b", lambda m: constants.get(m[0], m[0]), line))
    return "\n".join(lines)


def main(include_directory: str, output: str, module: str, *further: str) -> None:
    ffi = FFI()
    constants: dict[str, str] = {}
    for name in (*HEADERS, *further):
        text = Path(include_directory, "diffengine", f"{name}.h").read_text()
        ffi.cdef(declarations(text, constants))
    includes = "".join(f"#include <diffengine/{name}.h>\n" for name in (*HEADERS, *further))
    ffi.set_source(module, includes)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
