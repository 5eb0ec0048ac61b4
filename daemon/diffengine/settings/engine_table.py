# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables [engine] and [policies]: the same keys in a scenario and in the daemon's configuration."""

from diffengine.engine import BUILT_IN_POLICIES, EngineOptions, Policy, State, Technique
from diffengine.settings.checked import MIB, MOST_MIB, CheckedTable

PAGE_BYTES = 4096


def read_policies(table: CheckedTable) -> dict[str, Policy]:
    """The built-in policies, and the user's own: for each state, what is allowed."""
    policies = dict(BUILT_IN_POLICIES)
    for name in list(table.values):
        if name in BUILT_IN_POLICIES:
            table.errors.append(f"[policies.{name}]: must not have the name of a built-in policy")
        own = table.table(name)
        own.where = f"[policies.{name}]"
        allowed = {}
        for state in State:
            names = own.choices(state.name, [technique.value for technique in Technique])
            allowed[state] = tuple(Technique(each) for each in names)
        own.finish()
        policies[name] = Policy(name, allowed)
    return policies


def engine_options(table: CheckedTable, policies: dict[str, Policy], seed: int) -> EngineOptions:
    """The keys of [engine]. seed: of all hashes."""
    default = EngineOptions()
    table_mib = table.optional_number("table_memory_mib", 0.004, MOST_MIB, " MiB")
    options = EngineOptions(
        policy=policies[table.choice("policy", "default", list(policies))],
        seed=seed,
        passes=table.optional_whole("passes", 1, 256),
        table_memory_bytes=None if table_mib is None else int(table_mib * MIB),
        similarity_bytes_per_page=table.number("similarity_bytes_per_page", default.similarity_bytes_per_page, 1, 1024),
        cpu_share=table.number("cpu_share", default.cpu_share, 0.001, 1.0),
        visit_interval_s=table.number("visit_interval_s", default.visit_interval_s, 0.001, 3600, " seconds"),
        c4_visits=table.whole("c4_visits", default.c4_visits, 1, 250),
        refault_limit=table.whole("refault_limit", default.refault_limit, 0, 1 << 31, " per minute"),
        fault_limit=table.number("fault_limit", default.fault_limit, 0.1, 1e6, " per second"),
        evicted_share_limit=table.number("evicted_share_limit", default.evicted_share_limit, 0, 1),
        high_watermark=table.number("high_watermark", default.high_watermark, 0.01, 1),
        low_watermark=table.number("low_watermark", default.low_watermark, 0.01, 1),
        reserve_mib=table.number("reserve_mib", default.reserve_mib, 0, MOST_MIB, " MiB"),
        patch_limit=table.whole("patch_limit", default.patch_limit, 16, PAGE_BYTES - 1, " bytes"),
        dense=table.flag("dense", default.dense),
    )
    if options.low_watermark > options.high_watermark:
        table.errors.append(
            f"{table.name('low_watermark')} = {options.low_watermark}: must be at most high_watermark = "
            f"{options.high_watermark}"
        )
    table.finish()
    return options
