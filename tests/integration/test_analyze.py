# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine analyze` on real guest memory: its JSON, its tables, its pictures, the formats it reads."""

import copy
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from command import COMMAND, diffengine, output_of, report_in_process, report_of
from image_fixtures import Block, XenGuest, qemu_core, xen_core
from page_fixtures import PAGE, random_page, text_page, word_page, write_image

SEED = ["--seed", "20081208"]
PIPELINES = {"sharing", "lz4", "sharing+lz4", "paper", "best"}
# What the report's readers build on: these keys are never renamed.
PIPELINE_KEYS = {
    "encoded_bytes": int,
    "bytes_left": int,
    "saving": float,
    "patched_pages": int,
    "mean_patch_bytes": float,
    "reference_pages": int,
    "compressed_pages": int,
    "raw_pages": int,
    "store_bytes": int,
    "verified_pages": int,
}
STAGES = {"digest", "sharing", "similarity", "encode", "verify", "total"}

Report = dict[str, Any]


@pytest.fixture(scope="module")
def pair(samples: dict[str, Path]) -> list[Path]:
    """Two guests booted from one disk image."""
    return [samples["d12a-work"], samples["d12b-work"]]


@pytest.fixture(scope="module")
def report(pair: list[Path]) -> Report:
    return report_of(*pair, *SEED)


@pytest.fixture(scope="module")
def one(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of one guest, where the whole of it would only take longer."""
    path = tmp_path_factory.mktemp("one") / "one.raw"
    path.write_bytes(samples["d13a-work"].read_bytes()[: 512 * PAGE])
    return path


@pytest.fixture(scope="module")
def one_report(one: Path) -> Report:
    return report_in_process(one, *SEED)


def figures(report: Report) -> Report:
    """A report without what differs from run to run, and from file to file."""
    kept = {key: value for key, value in report.items() if key not in ("cpu_seconds", "images")}
    return copy.deepcopy(kept) | {"pages of images": [image["pages"] for image in report["images"]]}


def nonzero_contents(path: Path) -> list[bytes]:
    data = path.read_bytes()
    pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    return [page for page in pages if any(page)]


def test_json_has_the_keys_that_others_build_on(report: Report, pair: list[Path]) -> None:
    assert report["images"] == [{"path": str(p), "pages": p.stat().st_size // PAGE} for p in pair]
    assert {"total", "zero", "same_filled", "distinct", "sharable"} <= report["pages"].keys()
    assert all(type(count) is int for count in report["pages"].values())
    for scope in ("pipelines", "pipelines_isolated"):
        assert report[scope].keys() == PIPELINES
        for result in report[scope].values():
            assert {key: type(result[key]) for key in PIPELINE_KEYS} == PIPELINE_KEYS
    assert type(report["metadata_bytes_per_page"]) is float
    assert report["cpu_seconds"].keys() == STAGES
    assert all(seconds >= 0 for seconds in report["cpu_seconds"].values())


def test_pages_are_counted_right(report: Report, pair: list[Path]) -> None:
    contents = [page for path in pair for page in nonzero_contents(path)]
    total = sum(path.stat().st_size // PAGE for path in pair)
    assert report["pages"] == {
        "total": total,
        "zero": total - len(contents),
        "same_filled": sum(page == page[:8] * (PAGE // 8) for page in contents),
        "distinct": len(set(contents)),
        "sharable": len(contents) - len(set(contents)),
    }


def test_each_technique_saves_more_than_the_one_before(report: Report) -> None:
    total = report["pages"]["total"]
    for scope in ("pipelines", "pipelines_isolated"):
        results = report[scope]
        assert all(result["verified_pages"] == total for result in results.values())
        assert all(
            result["saving"] == pytest.approx(1 - result["bytes_left"] / (total * PAGE)) for result in results.values()
        )
        order = ("sharing", "sharing+lz4", "paper", "best")
        encoded = [results[name]["encoded_bytes"] for name in order]
        assert encoded == sorted(encoded, reverse=True) and len(set(encoded)) == len(encoded)
        assert results["best"]["saving"] == max(result["saving"] for result in results.values())
        assert results["sharing"]["patched_pages"] == results["lz4"]["patched_pages"] == 0
    for name in ("sharing", "sharing+lz4", "paper", "best"):
        assert report["pipelines"][name]["saving"] > report["pipelines_isolated"][name]["saving"]


def test_metadata_stays_within_24_bytes_per_page(report: Report) -> None:
    assert 0 < report["metadata_bytes_per_page"] <= 24


def test_the_store_loses_little(report: Report) -> None:
    # 12 % is what whole images may lose; a sample's last chunks, half empty, weigh more.
    for result in report["pipelines"].values():
        assert 0 <= 1 - result["encoded_bytes"] / result["store_bytes"] <= 0.14


@pytest.mark.parametrize("options", [["--jobs", "1"], ["--jobs", "5"], ["--table-memory", "1M"]], ids=" ".join)
def test_figures_depend_neither_on_threads_nor_on_passes(one: Path, one_report: Report, options: list[str]) -> None:
    found, expected = figures(report_in_process(one, *SEED, *options)), figures(one_report)
    if "--table-memory" in options:
        assert found.pop("passes") == 1 < expected["passes"]
        # A larger table is more memory, which must show, and nothing else may.
        more = {f["bytes_left"] - e["bytes_left"] for f, e in shared_results(found, expected)}
        assert len(more) == 1 and more.pop() > 0
        for both in (found, expected):
            for key in ("metadata_bytes_per_page", "passes"):
                both.pop(key, None)
            for result, _ in shared_results(both, both):
                for key in ("bytes_left", "metadata_bytes", "saving"):
                    result.pop(key, None)
    assert found == expected


def shared_results(left: Report, right: Report) -> Iterator[tuple[Report, Report]]:
    for scope in ("pipelines", "pipelines_isolated"):
        for name in PIPELINES - {"lz4"}:
            yield left[scope][name], right[scope][name]


def test_one_image_alone_is_isolated_anyway(one_report: Report) -> None:
    assert one_report["pipelines"] == one_report["pipelines_isolated"]


def test_every_format_gives_the_same_figures(one: Path, one_report: Report, tmp_path: Path) -> None:
    content = one.read_bytes()
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    half = len(content) // 2
    core = qemu_core([Block(0, content[:half]), Block(1 << 32, content[half:])])
    forms = {
        "image.raw.zst": zstandard.compress(content),
        "image.core": core,
        "image.core.zst": zstandard.compress(core),
        "image.xen": xen_core(XenGuest(pages, range(len(pages)))),
        "image.pv": xen_core(XenGuest(pages, range(len(pages)), gmfns=range(5000, 5000 + len(pages)))),
    }
    for name, packed in forms.items():
        path = tmp_path / name
        path.write_bytes(packed)
        assert figures(report_in_process(path, *SEED)) == figures(one_report), name


def test_a_sparse_file_is_zero_where_it_has_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        file.truncate(1 << 27)
        file.seek(1 << 26)
        file.write(text_page(1))
    assert report_in_process(path)["pages"] == {
        "total": 1 << 15,
        "zero": (1 << 15) - 1,
        "same_filled": 0,
        "distinct": 1,
        "sharable": 0,
    }


def test_trust_groups_lie_between_all_and_isolated(one: Path, tmp_path: Path) -> None:
    other = write_image(tmp_path / "other.raw", [*nonzero_contents(one)[:200], *map(text_page, range(100))])
    third = write_image(tmp_path / "third.raw", [*map(text_page, range(50, 150)), bytes(PAGE)])
    images = [one, other, third]
    options = [*SEED, "--codec", "zstd"]
    one_group = report_in_process(*images, *options, "--group", f"all={one},{other},{third}")
    assert one_group["pipelines_grouped"] == one_group["pipelines"]
    assert one_group["groups"] == {"all": [str(path) for path in images]}
    alone = report_in_process(*images, *options, "--group", f"a={one}", "--group", f"b={other}")
    assert alone["pipelines_grouped"] == alone["pipelines_isolated"] == one_group["pipelines_isolated"]
    pair = report_in_process(*images, *options, "--group", f"pair={third},{other}")
    for name in PIPELINES - {"lz4"}:
        left = [pair[scope][name]["bytes_left"] for scope in ("pipelines", "pipelines_grouped", "pipelines_isolated")]
        assert left == sorted(left) and len(set(left)) == 3


def test_a_store_file_gives_the_same_figures_and_is_gone_afterwards(
    one: Path, one_report: Report, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert figures(report_in_process(one, *SEED, "--store-file", store)) == figures(one_report)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("detector", ["none", "hash", "shift"])
@pytest.mark.parametrize("codec", ["lz4", "zstd", "dense"])
def test_best_takes_any_detector_and_codec(one: Path, one_report: Report, detector: str, codec: str) -> None:
    found = report_in_process(one, *SEED, "--detector", detector, "--codec", codec)
    best = found["pipelines"]["best"]
    assert best["verified_pages"] == 512
    if detector == "none":
        assert best["patched_pages"] == 0
    elif codec == "lz4":  # the better a codec is alone, the fewer patches win on this few pages
        assert best["patched_pages"] > 0
    for name in PIPELINES - {"best"}:
        assert found["pipelines"][name] == one_report["pipelines"][name]
    if (codec, detector) == ("lz4", "none"):
        assert best == one_report["pipelines"]["sharing+lz4"]


def test_the_paper_s_parameters_are_free(one: Path, one_report: Report) -> None:
    wide = report_in_process(one, *SEED, "-k", "32", "-s", "2", "-c", "4")["pipelines"]
    more = report_in_process(one, *SEED, "-k", "16", "-c", "2")["pipelines"]
    assert more["paper"]["patched_pages"] > one_report["pipelines"]["paper"]["patched_pages"]
    assert wide["paper"]["verified_pages"] == 512
    assert wide["best"] == more["best"] == one_report["pipelines"]["best"]


def test_seeds_are_random_unless_given(one: Path, one_report: Report) -> None:
    assert one_report["seed"] == int(SEED[1])
    seeds = {report_in_process(one, "--codec", "lz4")["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_a_process_of_its_own_draws_and_prints_the_same(one: Path, one_report: Report, tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    assert figures(report_of(one, *SEED, "--plot", picture)) == figures(one_report)
    assert picture.stat().st_size > 10_000


def test_tables_show_the_figures(pair: list[Path], report: Report) -> None:
    printed = output_of("analyze", *pair, *SEED)
    for count in report["pages"].values():
        assert f" {count:,} " in printed
    for scope in ("pipelines", "pipelines_isolated"):
        for result in report[scope].values():
            assert f"{result['saving']:.1%}" in printed
            assert f"{result['bytes_left'] / 2**20:,.1f}" in printed
            if result["patched_pages"]:
                assert f" {result['patched_pages']:,} " in printed
                assert f" {result['reference_pages']:,} " in printed
    for title in ("all images in one trust group", "each image in its own", "none differed"):
        assert title in printed
    assert max(len(line) for line in printed.splitlines()) <= 120


def test_tables_can_be_printed_without_unicode(one: Path) -> None:
    output_of("analyze", one, "--codec", "lz4", PYTHONIOENCODING="ascii").encode("ascii")


@pytest.mark.parametrize("images", [1, 2, 3])
def test_pictures_are_drawn(one: Path, tmp_path: Path, images: int) -> None:
    others = [write_image(tmp_path / f"{n}.raw", [text_page(n), *nonzero_contents(one)[: 20 * n]]) for n in (1, 2)]
    paths = [one, *others][:images]
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    report_in_process(*paths, "--codec", "lz4", "--plot", png)
    report_in_process(*paths, "--codec", "lz4", "--plot", svg)
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert png.stat().st_size > 10_000
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.stat().st_size > 10_000
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".raw") == [".png", ".svg"]


@pytest.mark.parametrize("name", ["a$\\x$.raw", "[bold]a[i].raw", "a_b^c{.raw", os.fsdecode(b"\xff.raw"), "内存.raw"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    pages = [text_page(n) for n in range(40)]
    paths = [write_image(tmp_path / name, pages), write_image(tmp_path / "b.raw", pages[:20])]
    group = f"web={paths[0]},{paths[1]}"
    report_in_process(*paths, "--group", group, "--plot", tmp_path / "a.png")
    assert report_in_process(*paths)["images"][0]["path"].endswith(name)


def test_odd_images(tmp_path: Path) -> None:
    """Nothing but zeroes, one page, one word, noise that nothing makes smaller, one content many times."""
    odd = {
        "zero": [bytes(PAGE)] * 64,
        "one-page": [text_page(1)],
        "one-zero-page": [bytes(PAGE)],
        "words": [word_page(bytes([n]) * 8) for n in range(1, 33)],
        "noise": [random_page(n) for n in range(64)],
        "copies": [text_page(1)] * 300,
    }
    for name, pages in odd.items():
        report = report_in_process(write_image(tmp_path / f"{name}.raw", pages))
        assert all(result["verified_pages"] == len(pages) for result in report["pipelines"].values()), name
    together = report_in_process(*(tmp_path / f"{name}.raw" for name in odd))
    nonzero = [page for pages in odd.values() for page in pages if any(page)]
    assert together["pages"]["distinct"] == len(set(nonzero))
    assert np.array(together["pages_shared_between"]).shape == (6, 6)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["tables", "json"])
def test_a_reader_that_leaves_ends_it_quietly(one: Path, options: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end) as stdout:
        done = subprocess.run(
            [*COMMAND, "analyze", str(one), "--codec", "lz4", *options],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["tables", "json"])
def test_a_full_disk_is_told_in_one_line(one: Path, options: list[str]) -> None:
    with Path("/dev/full").open("w") as stdout:
        done = subprocess.run(
            [*COMMAND, "analyze", str(one), "--codec", "lz4", *options],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr == "diffengine: stdout: No space left on device; make room or write elsewhere\n"


@pytest.mark.parametrize("arguments", [["--help"], ["analyze", "--help"], ["simulate", "--help"]], ids=" ".join)
def test_help_explains_on_stdout(arguments: list[str]) -> None:
    done = diffengine(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: diffengine {arguments[0] if len(arguments) > 1 else '[-h]'}")
    assert len(done.stdout.splitlines()) > 10
