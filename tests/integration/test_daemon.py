# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as an operator has it: what it says over socket and command line, and what it does when told."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command import COMMAND, diffengine, output_of, refusal_of
from daemon_host import Line, Loop, Parts, daemon_parts, loop
from diffengine.service.operations import Operations, RefusedError
from diffengine.service.parts import Part
from diffengine.service.rpc import Code

# A busy machine makes each of the pager's answers many times slower.
DEADLINE_S = 300.0
SCENARIO = """
[engine]
visit_interval_s = 0.1
c4_visits = 1
fault_limit = 100000
[[domain]]
name = "web"
memory_mib = 4
trust_group = "all"
[[domain]]
name = "db"
memory_mib = 4
trust_group = "all"
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def on() -> Iterator[Loop]:
    with loop() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.sock"


@pytest.fixture
def parts(path: Path, on: Loop) -> Iterator[Parts]:
    with daemon_parts(path, on) as made:
        yield made


@pytest.fixture
def line(parts: Parts, path: Path) -> Iterator[Line]:
    with closing(Line(path)) as made:
        yield made


def result(line: Line, method: str, **parameters: Any) -> Any:
    answer = line.ask(method, **parameters)
    assert "result" in answer, answer
    return answer["result"]


def out(line: Line) -> int:
    return int(result(line, "status")["evicted_pages"])


def pages_out(parts: Parts, domid: int) -> int:
    return parts.worker.submit(lambda operations: operations.pages_out(domid)).result()


def saving(line: Line) -> None:
    wait_until(lambda: out(line) > 1500, "the engine evicts nothing")


def test_tells_what_is_saved_and_why_no_more(parts: Parts, line: Line) -> None:
    saving(line)

    def incompressible() -> bool:
        reasons = {each["reason"]: each["pages"] for each in result(line, "reasons", domain="web")["reasons"]}
        return bool(reasons.get("incompressible") == 100)

    wait_until(incompressible, "its random pages are not told of")
    result(line, "pause")
    status = result(line, "status")
    assert (status["protocol"], status["domains"], status["domains_worked_on"]) == (1, 2, 2)
    assert status["memory"]["used"] == parts.machine.memory().used * 4096
    domains = {domain["name"]: domain for domain in result(line, "domains")["domains"]}
    assert set(domains) == {"web", "db"}
    for name, domain in domains.items():
        assert (domain["standing"], domain["trust_group"], domain["memory_bytes"]) == ("worked_on", "all", 1100 * 4096)
        assert sum(domain["pages"].values()) == 1100
        assert result(line, "domain", domain=name)["domid"] == domain["domid"]
        # Its random pages stay where they are.
        assert domain["pages"]["resident"] + domain["pages"]["watched"] >= 100
        assert domain["saved_by"]["patching"] + domain["saved_by"]["compression"] > 0
    assert result(line, "reasons")["reasons"]["incompressible"] >= 200


def sweeps_now(parts: Parts) -> int:
    parts.worker.submit(lambda operations: operations.refresh()).result(DEADLINE_S)
    return parts.worker.snapshot.status.sweeps


def test_pages_come_back_and_stay_until_it_may_go_on(parts: Parts, line: Line) -> None:
    saving(line)
    assert result(line, "page-in", domain="web")["pages"] > 700
    assert pages_out(parts, 1) == 0
    assert result(line, "domain", domain="web")["standing"] == "paused"
    assert result(line, "reasons", domain="web")["reasons"][0]["reason"] == "paused"
    time.sleep(0.5)
    assert pages_out(parts, 1) == 0
    result(line, "resume", domain=1)
    saving(line)


def test_a_pause_holds_and_everything_drains(parts: Parts, line: Line) -> None:
    saving(line)
    assert result(line, "drain")["domains"] == 2
    wait_until(lambda: out(line) == 0, "pages stay out")
    memory = parts.machine.memory()
    assert memory.used + memory.sharing_saved == 2200
    status = result(line, "status")
    assert status["paused"] is True
    assert result(line, "reasons", domain="db")["reasons"][0]["reason"] == "engine_paused"
    sweeps = sweeps_now(parts)
    time.sleep(0.5)
    assert sweeps_now(parts) == sweeps
    result(line, "resume")
    saving(line)


@pytest.mark.parametrize("method", ["drain", "release"])
def test_others_are_told_how_far_it_is(parts: Parts, line: Line, path: Path, method: str) -> None:
    saving(line)
    result(line, "pause")
    domids = (1,) if method == "release" else (1, 2)
    before = sum(pages_out(parts, domid) for domid in domids)
    with closing(Line(path)) as asking:
        # The engine's thread is kept from it, so that it can be seen on its way.
        held = threading.Event()
        parts.worker.submit(lambda operations: held.wait(DEADLINE_S))
        parameters = {"domain": "web"} if method == "release" else {}
        request = {"jsonrpc": "2.0", "id": 5, "method": method, "params": parameters}
        asking.send(json.dumps(request).encode())
        seen: list[dict[str, Any]] = []
        order = Operations.bring_back

        def slowly(operations: Operations, domid: int, part: Part) -> bool:
            came = order(operations, domid, part)
            seen.append(result(line, "status")["coming_back"])
            return came

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Operations, "bring_back", slowly)
            held.set()
            answer = asking.read()
        told = {"domid": 1} if method == "release" else {"domains": 2}
        assert answer is not None and answer["result"] == {**told, "pages": before}
    assert len(seen) > len(domids), "it comes back all at once"
    assert all((each["doing"], each["pages"]) == (method, before) for each in seen)
    assert [each["done"] for each in seen] == sorted(each["done"] for each in seen)
    assert seen[0]["left_s"] is None and seen[-1]["left_s"] is not None
    assert result(line, "status")["coming_back"] is None


def test_an_order_that_nobody_waits_for_any_more_does_not_disturb_the_end(parts: Parts) -> None:
    held = threading.Event()
    parts.worker.submit(lambda operations: held.wait(DEADLINE_S))
    forgotten = parts.worker.submit(lambda operations: None)
    assert forgotten.cancel()
    stopping = threading.Thread(target=parts.worker.stop)
    stopping.start()

    def is_ending() -> bool:
        try:
            parts.worker.submit(lambda operations: None)
        except RefusedError as error:
            return "ending" in str(error)
        return False

    wait_until(is_ending, "it takes orders still")
    held.set()
    stopping.join()


def test_what_a_paused_domain_saves_is_still_told(parts: Parts, line: Line) -> None:
    saving(line)
    result(line, "pause", domain="web")
    domain = result(line, "domain", domain="web")
    assert (domain["standing"], domain["reasons"]) == ("paused", None)
    out = sum(domain["pages"][place] for place in ("patched", "compressed", "swapped"))
    assert out == pages_out(parts, 1) > 500
    saved = domain["saved_by"]["patching"] + domain["saved_by"]["compression"]
    assert out * 4096 // 8 < saved < out * 4096
    assert sum(result(line, "status")["saved_by"].values()) >= saved
    result(line, "page-in", domain="web")
    assert sum(result(line, "domain", domain="web")["saved_by"].values()) == 0


def test_what_does_not_fit_is_refused_with_numbers_and_nothing_moves(parts: Parts, line: Line) -> None:
    saving(line)
    result(line, "pause")
    before = [pages_out(parts, domid) for domid in (1, 2)]
    hog = parts.machine.create_domain(_zeros(parts.machine.memory().free - 100))
    for method, parameters in (("drain", {}), ("page-in", {"domain": "web"})):
        error = line.ask(method, **parameters)["error"]
        assert error["code"] == Code.REFUSED
        assert error["data"]["free_pages"] == 100 and error["data"]["pages"] >= before[0]
        assert "MiB for pages that are out, and the host has 0.4 MiB free for them; make room first" in error["message"]
    assert [pages_out(parts, domid) for domid in (1, 2)] == before
    parts.machine.destroy_domain(hog)
    result(line, "drain")


def _zeros(count: int) -> NDArray[np.uint64]:
    return np.zeros(count, dtype=np.uint64)


def test_settings_hold_at_once_and_wrong_ones_change_nothing(parts: Parts, line: Line) -> None:
    saving(line)
    result(line, "set", key="enabled", value=False, domain="web")
    assert result(line, "domain", domain="web")["standing"] == "not_enabled"
    result(line, "set", key="min_resident_mib", value=1, domain="db")
    assert result(line, "domain", domain="db")["min_resident_bytes"] == 1 << 20
    result(line, "set", key="enabled", value=None, domain="1")
    assert result(line, "domain", domain="web")["standing"] == "worked_on"
    for key, value in (("cpu_share", 7), ("cpu_share", "x"), ("nonsense", 1), ("policy", "none")):
        error = line.ask("set", key=key, value=value)["error"]
        assert (error["code"], key in error["message"]) == (Code.INVALID_PARAMETERS, True)
    # This one takes another engine, which finds what is out.
    before = out(line)
    result(line, "set", key="policy", value="compress-first")
    assert out(line) >= before - 100
    result(line, "set", key="trust_group", value="other", domain="db")
    assert result(line, "domain", domain="db")["trust_group"] == "other"
    saving(line)


def test_frees_memory_for_another_domain_or_says_how_far_it_came(parts: Parts, line: Line) -> None:
    # 512 frames are free at the start, and some 2,000 come free.
    made = result(line, "free", mib=5, timeout_s=50)
    assert made["enough"] is True and made["free_mib"] >= 5
    assert parts.machine.memory().free >= 5 * 256
    made = result(line, "free", mib=100, timeout_s=0.5)
    assert made["enough"] is False and 5 <= made["free_mib"] < 100
    assert result(line, "status")["freeing"] is False


def test_what_is_reserved_is_not_free_for_another_domain(parts: Parts, line: Line) -> None:
    saving(line)
    result(line, "set", key="reserve_mib", value=1)
    wait_until(lambda: parts.machine.memory().claimed >= 192, "nothing is reserved")
    made = result(line, "free", mib=1000, timeout_s=0.1)
    memory = parts.machine.memory()
    assert made["free_mib"] <= (memory.free - 192) // 256


def test_a_released_domain_is_left_alone_until_that_is_undone(parts: Parts, line: Line) -> None:
    saving(line)
    assert result(line, "release", domain="web")["pages"] > 700
    wait_until(lambda: result(line, "domain", domain="web")["standing"] == "refused", "it is not left alone")
    result(line, "release", domain="web", undo=True)
    wait_until(lambda: result(line, "domain", domain="web")["standing"] == "worked_on", "it is not taken again")


def test_who_may_only_look_changes_nothing(path: Path, on: Loop) -> None:
    with daemon_parts(path, on, may_change=frozenset()) as parts, closing(Line(path)) as line:
        saving(line)
        configuration = parts.worker.submit(lambda operations: operations.configuration).result()
        for method in ("set", "pause", "resume", "page-in", "free", "release", "drain"):
            error = line.ask(method, domain="web", key="cpu_share", value=0.5, mib=1)["error"]
            assert (error["code"], "for root alone" in error["message"]) == (Code.NOT_PERMITTED, True)
        assert parts.worker.submit(lambda operations: operations.configuration).result() == configuration
        assert {domain["standing"] for domain in result(line, "domains")["domains"]} == {"worked_on"}


def test_domains_come_and_go_while_somebody_follows(parts: Parts, line: Line, path: Path) -> None:
    result(line, "events")
    domid = parts.machine.create_domain(_zeros(50))
    event = line.read()
    assert event is not None
    assert (event["params"]["event"], event["params"]["domid"]) == ("left_alone", domid)
    parts.machine.destroy_domain(domid)
    event = line.read()
    assert event is not None and event["params"]["event"] == "gone"


@contextmanager
def daemon_command(folder: Path, *options: str | Path) -> "Iterator[subprocess.Popen[str]]":
    scenario = folder / "two.toml"
    scenario.write_text(SCENARIO)
    command = [*COMMAND, "daemon", "--embedded", scenario, "--socket", folder / "status.sock", *options]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (folder / "status.sock").exists() or process.poll() is not None, "it does not start")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_commands_say_what_the_socket_says(tmp_path: Path) -> None:
    there = ("--socket", tmp_path / "status.sock")
    with daemon_command(tmp_path) as process:

        def zeros_are_shared() -> bool:
            return bool(json.loads(output_of("status", "--json", *there))["saved_by"]["sharing"] > 7 << 20)

        wait_until(zeros_are_shared, "nothing is shared")
        assert "2 of 2 domains" in output_of("status", *there)
        assert "worked_on" in output_of("domains", *there)
        assert "web" in output_of("domains", "--json", *there)
        assert json.loads(output_of("why", "db", "--json", *there))["name"] == "db"
        output_of("why", "db", *there)
        assert output_of("pause", "web", *there) == "Done, domain 1\n"
        assert "left alone: paused" in output_of("why", "web", *there)
        assert output_of("resume", "web", *there) == "Done, domain 1\n"
        assert output_of("set", "cpu_share", "0.25", *there) == "cpu_share = 0.25\n"
        assert output_of("set", "policy", "default", *there) == "policy = null\n"
        assert "cpu_share = 7: must be" in refusal_of("set", "cpu_share", "7", *there, code=1)
        assert "no domain nobody" in refusal_of("why", "nobody", *there, code=1)
        assert "enough" in output_of("free", "1", *there)
        assert diffengine("free", "1000", "--timeout-s", "1", *there).returncode == 3
        for words in (("page-in", "web"), ("drain",)):
            done = diffengine(*words, *there)
            assert (done.returncode, done.stdout.endswith("pages came back\n")) == (0, True)
            assert all("pages are back" in line for line in done.stderr.splitlines())
        process.terminate()
        _, log = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert log.endswith("diffengine: told to end\n")
        assert not (tmp_path / "status.sock").exists()
    assert "no daemon answers there" in refusal_of("status", *there, code=1)


def test_a_file_is_read_again_when_told_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "diffengine.toml"
    file.write_text("[domain.web]\n")
    there = ("--socket", tmp_path / "status.sock")

    def standings() -> list[str]:
        domains = json.loads(output_of("domains", "--json", *there))["domains"]
        return [str(domain["standing"]) for domain in domains]

    with daemon_command(tmp_path, "--config", file) as process:
        assert standings() == ["worked_on", "not_enabled"]
        file.write_text("[domains]\nenabled = true\n[domain.web]\nenabled = false\n")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: standings() == ["not_enabled", "worked_on"], "the file is not read")
        file.write_text("[domains]\nenabled = 3\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        for said in process.stderr:
            if "the settings stay as they are" in said:
                assert "[domains] enabled = 3: must be true or false" in said
                break
        assert standings() == ["not_enabled", "worked_on"]


def test_a_wrong_start_says_why(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[engine]\ncpu_share = 7\n")
    assert "cpu_share = 7" in refusal_of("daemon", "--config", wrong, "--machine", tmp_path / "none")
    scenario = tmp_path / "two.toml"
    scenario.write_text(SCENARIO)
    nowhere = tmp_path / "nowhere" / "status.sock"
    done = diffengine("daemon", "--embedded", scenario, "--socket", nowhere)
    assert done.returncode == 1
    assert "No such file or directory; set [socket] path" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
