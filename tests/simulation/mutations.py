# SPDX-License-Identifier: GPL-2.0-or-later
"""Does virtual time find bugs? Plants known ones in copies of machine, pager and store, one at a time, and counts.

Usage: mutations.py WORK_DIRECTORY [NAME ...]

Not among them, since virtual time can't see them; tests/unit/native/test_takeover.c does:
* evicted although nobody keeps the hold table: the simulated device model keeps it as long as it writes;
* frames of the store domain that keep what they held before: what the simulated machine puts there is no object.
Nor is a release that brings no pages back: such a domain is refused to be given up, and stays as it was.

Each line: the bug, the guest operations it took to find it, and what was seen. Exit status 1 if one was not found.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
"""meson and ninja are those of the Python environment: another ninja does not understand this one's build log."""
SEEDS = 3000
OPERATIONS = 10000
TIMEOUT_S = 1200


@dataclass(frozen=True)
class Mutation:
    """A bug: in `file`, `right` becomes `wrong`."""

    name: str
    file: str
    right: str
    wrong: str


MUTATIONS = (
    Mutation(
        "no verification before eviction",
        "pager/proposal.c",
        "bool equal = memcmp(page, loader->page, DE_PAGE_SIZE) == 0;",
        "bool equal = page != NULL;",
    ),
    Mutation(
        "verified before it is watched",
        "pager/proposal.c",
        "        result = watch_alone(pager, place, &watched);\n"
        "        if (!result)\n            result = evict_watched(pager, place, watched, object);",
        "        result = verify(pager, place, object);\n"
        "        if (!result)\n            result = watch_alone(pager, place, &watched);\n"
        "        if (!result && de_store_retain(pager->store, object) == DE_OK)\n"
        "            result = evict_verified(pager, place, watched, object);",
    ),
    Mutation(
        "nominated while the domain runs",
        "pager/proposal.c",
        "    if (!pager->hypervisor.operations->pause_outside_kernel)\n        return DE_PROPOSAL_DONE;",
        "    if (pager)\n        return DE_PROPOSAL_DONE;",
    ),
    Mutation(
        "entry only after the eviction",
        "pager/proposal.c",
        "    int error = HYPERCALL(pager, paging_evict, place.domain->id, place.gfn);\n"
        "    bool ours = settle(pager, place, evicting, error == 0);",
        "    entry_change(pager, place.domain, place.gfn, evicting, watched);\n"
        "    int error = HYPERCALL(pager, paging_evict, place.domain->id, place.gfn);\n"
        "    if (!error)\n"
        "        entry_change(pager, place.domain, place.gfn, watched, evicting);\n"
        "    bool ours = settle(pager, place, evicting, error == 0);\n"
        "    ours = ours || error;",
    ),
    Mutation(
        "answer without version",
        "pager/serve.c",
        "response.version = DE_VM_EVENT_VERSION;",
        "response.version = 0;",
    ),
    Mutation(
        "answer without the paused flag",
        "pager/serve.c",
        "response.version = DE_VM_EVENT_VERSION;",
        "response.version = DE_VM_EVENT_VERSION;\n    response.flags = 0;",
    ),
    Mutation(
        "no reference for the page table",
        "pager/proposal.c",
        "    if (de_store_retain(pager->store, object) != DE_OK)\n        return DE_PROPOSAL_NO_OBJECT;\n"
        "    int result = verify",
        "    if (de_store_retain(pager->store, object) != DE_OK)\n        return DE_PROPOSAL_NO_OBJECT;\n"
        "    de_store_release(pager->store, object);\n    int result = verify",
    ),
    Mutation(
        "an object is not given back after a refused eviction",
        "pager/proposal.c",
        "    if (error && ours)\n        de_store_release(pager->store, object);",
        "",
    ),
    Mutation(
        "a patch does not count its reference",
        "store/store.c",
        "        atomic_fetch_add(de_store_entry(store, object.references[i]), 1);",
        "        (void)i;",
    ),
    Mutation(
        "no word to the pager of a new event",
        "machine/ring.c",
        "    block_wake(&channel->events);\n    if (channel->announce)",
        "    if (channel->announce)",
    ),
    Mutation(
        "no word to those who wait for a slot",
        "machine/ring.c",
        "        if (domain->ring.waiters)\n            block_wake(&domain->slots);",
        "",
    ),
    Mutation(
        "shared without comparing",
        "pager/proposal.c",
        "if (!result && memcmp(pages[0], pages[1], DE_PAGE_SIZE) != 0)",
        "if (!result && !pages[0])",
    ),
    Mutation(
        "no wait for a vCPU in the middle of an access",
        "machine/p2m.c",
        "        wait_for_vcpus(domain, gfn);\n}",
        "        (void)wait_for_vcpus;\n}",
    ),
    Mutation(
        "a mapping does not pin",
        "machine/paging.c",
        "if (domain && right && machine->frames[entry_frame(entry)].references == 1) {",
        "if (domain && right) {",
    ),
    Mutation(
        "evicted although held by the device model",
        "holds/holds.c",
        "    while (!(now & (COUNT | LOCKED)))",
        "    while (!(now & LOCKED))",
    ),
    Mutation(
        "a hold is not looked at",
        "pager/proposal.c",
        "    if (holds && !de_holds_lock(holds, place.gfn))\n        return DE_PROPOSAL_HELD;",
        "    if (holds)\n        (void)de_holds_lock(holds, place.gfn);",
    ),
    Mutation(
        "a page is unlocked for its device model before it is evicted",
        "pager/proposal.c",
        "    result = evict_locked(pager, place, object);\n    if (holds)\n        de_holds_unlock(holds, place.gfn);",
        "    if (holds)\n        de_holds_unlock(holds, place.gfn);\n    result = evict_locked(pager, place, object);",
    ),
    Mutation(
        "a device model hears that its page is in before it is",
        "pager/bring_in.c",
        "        bring_in->retry = true;\n        return false;",
        "        bring_in->retry = true;\n        return true;",
    ),
    Mutation(
        "a device model's request wakes nobody",
        "holds/holds.c",
        "        if (asked)\n            de_holds_interrupt(holds);",
        "        if (asked)\n            (void)de_holds_interrupt;",
    ),
    Mutation(
        "the hint that a page is out is taken back before the page is in",
        "pager/load.c",
        "    uint64_t start_ns = HYPERCALL(pager, now_ns);\n    int status = de_rebuild_page",
        "    pager_note(domain, gfn, DE_HOLDS_OUT, false);\n"
        "    uint64_t start_ns = HYPERCALL(pager, now_ns);\n    int status = de_rebuild_page",
    ),
    Mutation(
        "a page of a domain that went stays locked (found in the pager by virtual time)",
        "holds/holds.c",
        "        unlock_all(fd);",
        "        (void)unlock_all;",
    ),
    Mutation(
        "a backend maps a nominated page without asking",
        "machine/touches.c",
        "    if (is_paging(type)) {",
        "    if (is_paging(type) && type != DE_P2M_PAGING_OUT) {",
    ),
    Mutation(
        "a hypercall writes to a shared page",
        "machine/touches.c",
        "    if (type == DE_P2M_SHARED && share_break(vcpu->machine, domain, gfn)) {\n        domain_crash",
        "    if (type == DE_P2M_SHARED && !vcpu->machine) {\n        domain_crash",
    ),
    Mutation(
        "claimed frames are given to others",
        "machine/frames.c",
        "if (!machine->free_count || (machine->free_count <= machine->claimed && !domain->claimed))",
        "if (!machine->free_count || !domain)",
    ),
    Mutation(
        "a stale sharing handle counts as a live one",
        "machine/sharing.c",
        "return machine->frames[frame].share->handle == handle ? frame : FRAME_NONE;",
        "return handle ? frame : FRAME_NONE;",
    ),
    Mutation(
        "a released domain is paged again",
        "pager/pager.c",
        "if (status == DE_OK && released_has(pager->directory, id, &uuid))",
        "if (status == DE_OK && pager->directory < -1)",
    ),
    Mutation(
        "a domain is given up with pages nominated",
        "pager/pager.c",
        "        if (entry_get(domain, gfn).state != DE_PAGE_RESIDENT)\n            return refuse",
        "        if (entry_get(domain, gfn).state == DE_PAGE_EVICTED)\n            return refuse",
    ),
    Mutation(
        "a reference goes to swap before its patches",
        "store/swapped.c",
        "return *dependants(store, id) ? DE_BUSY : DE_OK;",
        "return *dependants(store, id) > 1000 ? DE_BUSY : DE_OK;",
    ),
    Mutation(
        "in-between entries count as evicted after a takeover",
        "pager/takeover.c",
        "    int error = HYPERCALL(pager, paging_load, domain->id, gfn, NULL);\n    if (error == 0)",
        "    int error = -EINVAL;\n    if (error == 0)",
    ),
    Mutation(
        "events taken and not answered are forgotten in a takeover",
        "pager/takeover.c",
        "        domain->phases[slot] = EVENT_RETRY;",
        "        domain->phases[slot] = EVENT_IDLE;",
    ),
    Mutation(
        "an eviction's end lost when a server lets go of it (found in the pager by reading)",
        "pager/proposal.c",
        "        else if (entry_pack(now) != entry_pack(evicting))\n            return false;",
        "        else\n            return false;",
    ),
    Mutation(
        "an eviction under way keeps its object when the page is given back (found in the pager by virtual time)",
        "pager/load.c",
        "            HYPERCALL(pager, yield);\n            continue;\n        case DE_PAGE_WATCHED:",
        "            return;\n        case DE_PAGE_WATCHED:",
    ),
)


def find(mutation: Mutation, copy: Path, build: Path) -> tuple[bool, str]:
    """Build and run with one bug in; whether it was found, and what was said."""
    source = copy / "native" / mutation.file
    original = source.read_text()
    if mutation.right not in original:
        return False, "the place was not found: the source has changed"
    source.write_text(original.replace(mutation.right, mutation.wrong, 1))
    try:
        program = build / "native/simulation/simulate-seeds"
        made = subprocess.run(
            [str(TOOLS / "ninja"), "-C", str(build), "native/simulation/simulate-seeds"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            return False, "does not build: " + made.stdout[-300:]
        run = subprocess.run(
            [str(program), "0", str(SEEDS), str(OPERATIONS), "progress"],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"no end in {TIMEOUT_S} s"
    finally:
        source.write_text(original)
    lines = re.split(r"[\r\n]+", run.stdout.strip())
    if run.returncode < 0:
        return True, f"signal {-run.returncode} after {lines[-1]} operations"
    return run.returncode == 1, lines[-1]


def main(work: str, *names: str) -> int:
    copy = Path(work, "source")
    build = Path(work, "build")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for part in ("native", "ioemu_shim", "tests", "meson.build", "meson_options.txt", "LICENSE"):
        origin = ROOT / part
        if origin.is_dir():
            shutil.copytree(
                origin, copy / part, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
            )
        elif origin.exists():
            shutil.copyfile(origin, copy / part)
    if not (build / "build.ninja").exists():
        subprocess.run(
            [str(TOOLS / "meson"), "setup", str(build), str(copy), "-Dpython=false", "-Dtests=true", "-Dwerror=false"],
            check=True,
            capture_output=True,
            env=os.environ | {"NINJA": str(TOOLS / "ninja")},
        )
    missed = 0
    for mutation in MUTATIONS:
        if names and not any(name in mutation.name for name in names):
            continue
        found, said = find(mutation, copy, build)
        missed += not found
        print(f"{'found' if found else 'MISSED'}: {mutation.name}: {said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
