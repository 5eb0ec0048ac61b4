# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages and shell completion say what the command line, the pager and the configuration know."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from command import output_of, refusal_of
from diffengine.cli.completion import SHELLS
from diffengine.cli.main import parser
from diffengine.cli.manual import command_page, configuration_page, daemon_page, escaped, pager_page, subcommands
from diffengine.service.configuration import ConfigurationError, configuration
from diffengine.simulation.hosts import PAGER_PROGRAM

ROOT = Path(__file__).parents[2]
SERVICE = (ROOT / "docs/service.md").read_text()


def options_of(some: argparse.ArgumentParser) -> list[str]:
    return [name for action in some._actions for name in action.option_strings if name.startswith("--")]


def test_the_page_of_the_command_has_every_command_and_option() -> None:
    text = command_page()
    commands = dict(subcommands(parser()))
    assert len(commands) >= 15
    for name, each in commands.items():
        _, heading, rest = text.partition(f'.SS "diffengine {name}"\n')
        assert heading, name
        own = rest.split("\n.SS ")[0]
        for option in options_of(each):
            if option != "--help":
                assert f"\\fB{escaped(option)}" in own or f" {escaped(option)}" in own, f"{name} {option}"


def test_the_page_of_the_configuration_has_every_key() -> None:
    text = configuration_page(SERVICE, (ROOT / "systemd/diffengine.toml").read_text())
    tables = ("engine", "domains", "socket", "metrics", "libvirt", "dom0")
    found = 0
    for table in tables:
        with pytest.raises(ConfigurationError) as refused:
            configuration({table: {"no_such_key": 1}})
        known = re.search(r"known here: (.*)", str(refused.value))
        assert known
        for key in known[1].split(", "):
            assert escaped(key) in text, f"[{table}] {key}"
            found += 1
    with pytest.raises(ConfigurationError, match="known here: (.*)") as refused:
        configuration({"no_such_table": {}})
    for table in re.findall(r"known here: (.*)", str(refused.value))[0].split(", "):
        assert f"[{table}" in text, table
    assert found > 20


def test_the_pages_of_daemon_and_pager_have_every_option() -> None:
    daemon = dict(subcommands(parser()))["daemon"]
    for option in options_of(daemon):
        assert option == "--help" or escaped(option) in daemon_page(SERVICE), option
    said = subprocess.run([PAGER_PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"--[a-z-]+", said):
        assert escaped(option) in pager_page(), option
    for unit in ("diffengine-pager.service", "run-diffengine-pager.mount", "diffengine-drain.service"):
        assert escaped(unit) in daemon_page(SERVICE)


def completed(folder: Path, *words: str) -> set[str]:
    """What bash offers after these words, with nothing of the user's own."""
    quoted = " ".join(f"'{word}'" for word in ("diffengine", *words))
    script = f"source {folder}/diffengine 2>/dev/null; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
    # The function that `complete` names is called as bash calls it.
    script += "name=$(complete -p diffengine | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
    script += '"$name" diffengine "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null; '
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", script], capture_output=True, text=True, timeout=60, cwd=folder
    )
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    (tmp_path / "diffengine").write_text(output_of("completion", "bash"))
    (tmp_path / "some.toml").touch()
    assert completed(tmp_path, "wh") == {"why"}
    names = {name.split()[0] for name, _ in subcommands(parser())}
    assert completed(tmp_path, "") >= names
    assert {"--json", "--once", "--sort"} <= completed(tmp_path, "top", "--")
    assert completed(tmp_path, "top", "--sort", "mem") == {"memory"}
    assert completed(tmp_path, "config", "ch") == {"check"}
    assert "some.toml" in completed(tmp_path, "daemon", "--config", "some")


def test_other_shells_have_every_command() -> None:
    for shell in SHELLS:
        script = output_of("completion", shell)
        for name, _ in subcommands(parser()):
            assert name.split()[0] in script, f"{shell}: {name}"
    assert "argument SHELL: invalid choice" in refusal_of("completion", "csh")
