# SPDX-License-Identifier: GPL-2.0-or-later
"""The evaluation's report in a real browser: Chromium without a screen (`make test-report`)."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from command import diffengine
from evaluation_runs import small_images

CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars")
WIDTH, HEIGHT = 1300, 6000
BAR_BLUE = (0x00, 0x72, 0xB2)
# More than lines of text in that colour would have.
FIGURE_PIXELS = 2000


@pytest.fixture(scope="module")
def report(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    images = small_images(samples, folder / "images")
    done = diffengine("evaluate", "table1", "fig2", "--quick", "--images", images, "--output", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out" / "report.html"


def browse(*arguments: str, folder: Path) -> str:
    assert shutil.which("chromium"), "no chromium; `make test-report` installs it"
    command = [*CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_report_needs_nothing_but_itself(report: Path) -> None:
    text = report.read_text()
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert "<script" not in text
    assert not re.search(r"url\(|@import", text)


def test_a_browser_shows_all_sections_and_figures(report: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    browse(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", report.as_uri(), folder=tmp_path)
    pixels = np.round(imread(shot)[:, :, :3] * 255).astype(int)
    assert pixels.shape[:2] == (HEIGHT, WIDTH)
    blue = (pixels == BAR_BLUE).all(axis=2)
    assert blue.sum() > FIGURE_PIXELS
    # Nothing sticks out on the right.
    assert (pixels[:, -5:] == 255).all()


def test_the_dom_is_what_was_written(report: Path, tmp_path: Path) -> None:
    dom = browse("--dump-dom", report.as_uri(), folder=tmp_path)
    for name in ("summary", "table1", "fig2"):
        assert re.search(rf'<(?:section|header) id="{name}">', dom)
        assert f'href="#{name}"' in dom
    assert dom.count("<figure>") == 2
    assert "88,422" in dom
