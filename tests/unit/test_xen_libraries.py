# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's libraries as Debian packages them: our declarations against its headers, and what happens without a Xen."""

import errno
import re
import subprocess
from pathlib import Path

import pytest
from cffi import FFI

from diffengine.hypervisor.xen.connection import CPU_RECORD, CPU_RECORD_BYTES, CR0, Connection, refusal_to_open
from diffengine.hypervisor.xen.libraries import (
    COMMON,
    SUPPORTED,
    LibraryFact,
    XenUnavailableError,
    load,
    look,
    refuse_libraries,
)

VERSION = "4.17"
STRUCTURES = (
    "xen_arch_domainconfig",
    "xen_domctl_getdomaininfo",
    "xen_domctl_createdomain",
    "xen_sysctl_physinfo",
    "xc_hypercall_buffer",
)


def declared_layout() -> list[str]:
    """Every field of ours: where, and how large."""
    ffi = FFI()
    ffi.cdef(COMMON + SUPPORTED[VERSION])
    return [
        f"{name}.{field} {at.offset} {ffi.sizeof(at.type)}"
        for name in STRUCTURES
        for field, at in ffi.typeof(f"struct {name}").fields
    ] + [f"{name} {ffi.sizeof(f'struct {name}')}" for name in STRUCTURES]


def test_our_structures_are_those_of_xens_headers(tmp_path: Path) -> None:
    lines = []
    for name in re.findall(r"^(\S+) ", "\n".join(declared_layout()), re.MULTILINE):
        structure, _, field = name.partition(".")
        if field:
            size = f"sizeof(((struct {structure} *)0)->{field})"
            lines.append(f'printf("{name} %zu %zu\\n", offsetof(struct {structure}, {field}), {size});')
        else:
            lines.append(f'printf("{name} %zu\\n", sizeof(struct {structure}));')
    source = tmp_path / "layout.c"
    source.write_text(
        "#define __XEN_TOOLS__ 1\n#include <stddef.h>\n#include <stdio.h>\n#include <xenctrl.h>\n"
        f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "layout", source], check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    assert declared_layout() == printed.splitlines()


def test_our_functions_have_the_types_of_xens_headers(tmp_path: Path) -> None:
    """A declaration that differs from the header's makes the compiler refuse both together."""
    declarations = re.sub(r"struct \w+ \{.*?\};", "", SUPPORTED[VERSION], flags=re.DOTALL)
    declarations = declarations.replace("struct xc_shadow_op_stats", "xc_shadow_op_stats_t")
    source = tmp_path / "types.c"
    source.write_text(f"#define __XEN_TOOLS__ 1\n#include <xenctrl.h>\n{declarations}\n")
    subprocess.run(["cc", "-fsyntax-only", "-Werror", source], check=True)


def test_cr0_is_where_xen_saves_it(tmp_path: Path) -> None:
    source = tmp_path / "cr0.c"
    source.write_text(
        "#define __XEN_TOOLS__ 1\n#include <stddef.h>\n#include <stdint.h>\n#include <xen/xen.h>\n"
        "#include <xen/hvm/save.h>\n"
        f'_Static_assert(offsetof(struct hvm_hw_cpu, cr0) == {CR0}, "");\n'
        f'_Static_assert(HVM_SAVE_CODE(CPU) == {CPU_RECORD}, "");\n'
        f'_Static_assert(sizeof(struct hvm_hw_cpu) <= {CPU_RECORD_BYTES}, "");\n'
    )
    subprocess.run(["cc", "-fsyntax-only", "-Werror", source], check=True)


def test_debians_libraries_have_every_function() -> None:
    for fact in look(VERSION):
        assert fact.path is not None, fact.name
        assert fact.missing == ()
    assert load(VERSION).version == VERSION


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (LibraryFact("libxenctrl.so.4.17", None), "not installed; on Debian: apt install libxenmisc4.17"),
        (LibraryFact("libxenctrl.so.4.17", "/lib/x.so", ("xc_a", "xc_b")), "/lib/x.so has no xc_a, xc_b;"),
    ],
)
def test_a_library_that_lacks_something_is_refused_with_what_to_do(fact: LibraryFact, text: str) -> None:
    with pytest.raises(XenUnavailableError, match=re.escape(text)):
        refuse_libraries((fact,))


@pytest.mark.parametrize(("version", "text"), [(None, "run this in dom0"), ("4.99", "only tried on 4.17")])
def test_a_version_that_was_not_tried_is_refused(version: str | None, text: str) -> None:
    with pytest.raises(XenUnavailableError, match=text):
        load(version)


@pytest.mark.parametrize(
    ("error", "text"),
    [(errno.ENOENT, "modprobe xen-privcmd"), (errno.EACCES, "as root"), (errno.EIO, "Input/output error")],
)
def test_a_device_that_does_not_open_says_what_to_do(error: int, text: str) -> None:
    assert text in str(refusal_to_open(error))


def test_no_connection_without_a_xen_and_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(XenUnavailableError, match="/dev/xen/privcmd"):
        Connection(VERSION)
    assert capfd.readouterr() == ("", "")
