# diffengine: `make demo` and `make test` do all set-up on a bare Debian 12 machine (as root, or with sudo).
# The second time they only do what has changed. The command ends up in .venv/bin/diffengine.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := build/stamps

# What Debian provides; `make` installs what is missing.
PACKAGES := build-essential clang-format cpio liblz4-dev libssl-dev libsystemd-dev libxxhash-dev libzstd-dev ninja-build pkg-config \
            libxen-dev python3 python3-dev python3-venv systemd zstd
# For the `xen` extra of pyproject.toml, which the tests need and the demo does not.
XEN_EXTRA_PACKAGES := libvirt-dev
FUZZ_PACKAGES := clang libclang-rt-14-dev
# A hypervisor from source, a dom0 from packages, an emulator for it (tests/xen/README.md).
XEN_PACKAGES := bc bison dpkg-dev e2fsprogs flex mmdebstrap python3-dev qemu-system-x86 xz-utils
DEB_PACKAGES := debhelper dh-python dpkg-dev fakeroot lintian mmdebstrap
EVALUATE_PACKAGES := xdelta3
REPORT_PACKAGES := chromium
IMAGE_PACKAGES := e2fsprogs mmdebstrap qemu-system-x86
XEN_INTEL_PACKAGES := bochs bochsbios grub-common grub-pc-bin mtools vgabios xorriso

NATIVE_SOURCES := $(shell find native $(wildcard ioemu_shim) -name '*.[ch]' -o -name 'meson.build')
PYTHON_SOURCES := $(shell find daemon -name '*.py' -o -name 'meson.build' -o -name py.typed -o -name '*.j2')
C_FILES := $(shell find native $(wildcard ioemu_shim) tests -name '*.[ch]')

.PHONY: help build demo evaluate images test lint test-native test-python test-report docs bench fuzz fuzz-socket clean deb test-deb man \
        test-xen test-xen-intel test-xen-several-vcpus test-xen-smoke xen-shell
help:
	@echo 'make demo   set up and run the main job on real guest memory (about a minute the first time)'
	@echo 'make test   set up and run all checks and tests'
	@echo 'make evaluate   rerun the tables and figures of the paper, and write a report'
	@echo 'make images   boot Debian guests in an emulator and dump their memory'
	@echo 'make docs   the documentation as a site, in build/docs'
	@echo 'make bench  measure against LZ4, zstd, xdelta3 and the memory itself'
	@echo 'make test-xen-smoke, make test-xen, make test-xen-intel, make test-xen-several-vcpus   on a real Xen, in an emulator'
	@echo 'make xen-shell  a root prompt in its dom0'
	@echo 'make deb    build the Debian package; make test-deb installs, runs and purges it in a minimal Debian'
	@echo 'make fuzz   fuzz the decoders (SECONDS=60 each)'
	@echo 'make fuzz-socket  100,000 lines of nonsense for the status socket, and values for xenstore'

$(STAMPS):
	@mkdir -p $@

# Installs those of the packages $(1) that are missing. dpkg-query is asked first, so that no network and no root are needed
# when everything is there.
install_missing = missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}\n' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "Installing $$missing" && $(SUDO) apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -qy --no-install-recommends $$missing; fi

$(STAMPS)/packages: Makefile | $(STAMPS)
	@$(call install_missing,$(PACKAGES))
	@touch $@

$(STAMPS)/venv: pyproject.toml $(STAMPS)/packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check meson-python meson ninja cffi
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  $$($(call requirements,p['dependencies'] + p['optional-dependencies']['dev']))
	@touch $@

# Prints the requirements $(1), Python over pyproject.toml's [project] as p.
requirements = $(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*('\"%s\"' % r for r in $(1)))" | tr -d '"'
$(STAMPS)/xen-extra: pyproject.toml $(STAMPS)/venv
	@$(call install_missing,$(XEN_EXTRA_PACKAGES))
	$(BIN)/python -m pip install -q --disable-pip-version-check $$($(call requirements,p['optional-dependencies']['xen']))
	@touch $@

$(STAMPS)/installed: $(NATIVE_SOURCES) $(PYTHON_SOURCES) meson.build meson_options.txt pyproject.toml $(STAMPS)/venv
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
	  --config-settings=build-dir=build/python .
	@touch $@

build: $(STAMPS)/installed

# The real guest memory that the project carries: samples of four Debian guests (tests/images/README.md).
DEMO_IMAGES := build/images/d11a-work.raw build/images/d12a-work.raw build/images/d12b-work.raw build/images/d13a-work.raw
$(STAMPS)/images: tests/images/small.tar.zst $(STAMPS)/packages
	@mkdir -p build/images && zstd -dcq $< | tar -xf - -C build/images --no-same-owner
	@touch $@

demo: build $(STAMPS)/images
	$(BIN)/diffengine simulate demo --plot demo.png
	$(BIN)/diffengine analyze $(DEMO_IMAGES)

lint: $(STAMPS)/installed
	$(BIN)/ruff check daemon tests native
	$(BIN)/ruff format --check daemon tests native
	MYPYPATH=daemon $(BIN)/mypy --cache-dir build/mypy
	MYPYPATH=daemon:tests $(BIN)/mypy --cache-dir build/mypy -p xen.rig -p deb
	MYPYPATH=daemon:tests/xen/suite $(BIN)/mypy --cache-dir build/mypy $(patsubst tests/xen/suite/%.py,-m %,$(wildcard tests/xen/suite/*.py))
	$(BIN)/lint-imports
	clang-format --dry-run -Werror $(C_FILES)

# The C unit tests, each under the sanitizers that fit it.
build/asan/build.ninja: $(STAMPS)/venv
	$(BIN)/meson setup build/asan . -Dpython=false -Dtests=true -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
build/tsan/build.ninja: $(STAMPS)/venv
	$(BIN)/meson setup build/tsan . -Dpython=false -Dtests=true -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false

test-native: build/asan/build.ninja build/tsan/build.ninja
	UBSAN_OPTIONS=halt_on_error=1 $(BIN)/meson test -C build/asan --print-errorlogs
	setarch -R $(BIN)/meson test -C build/tsan --suite threads --print-errorlogs

# Guests in real time need the cores for themselves.
REAL_TIME_TESTS := tests/integration/test_simulate.py
test-python: $(STAMPS)/installed $(STAMPS)/xen-extra
	$(BIN)/python -m pytest -n 2 $(addprefix --ignore=,$(REAL_TIME_TESTS) tests/browser)
	$(BIN)/python -m pytest $(REAL_TIME_TESTS)

# The evaluation's report is looked at in a real browser.
$(STAMPS)/report-packages: $(STAMPS)/packages
	@$(call install_missing,$(REPORT_PACKAGES))
	@touch $@

test-report: $(STAMPS)/installed $(STAMPS)/report-packages
	$(BIN)/python -m pytest tests/browser

test: lint test-native test-python test-report

# Whole guests for it, booted and dumped here: tests/images/README.md says what that takes.
IMAGE_OPTIONS ?=
$(STAMPS)/image-packages: $(STAMPS)/packages
	@$(call install_missing,$(IMAGE_PACKAGES))
	@touch $@

images: $(STAMPS)/image-packages
	$(SUDO) env PYTHONPATH=tests $(PYTHON) tests/images/make_images.py build/guests --cache $(HOME)/.cache/diffengine-images $(IMAGE_OPTIONS)

# The paper's tables and figures on this machine; EVALUATE_OPTIONS as `diffengine evaluate --help` says.
EVALUATE_OPTIONS ?= --quick
$(STAMPS)/evaluate-packages: $(STAMPS)/packages
	@$(call install_missing,$(EVALUATE_PACKAGES)) || echo 'What could not be installed will be missing in the report'
	@touch $@

# Exit code 3: done, but for what this machine lacks something for; the report says what.
evaluate: build $(STAMPS)/images $(STAMPS)/evaluate-packages
	$(BIN)/diffengine evaluate $(EVALUATE_OPTIONS) || [ $$? -eq 3 ]

# The documentation as a site in build/docs, with the last evaluation's report if there is one.
$(STAMPS)/docs-venv: pyproject.toml $(STAMPS)/venv
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" | tr -d '"')
	@touch $@

docs: $(STAMPS)/docs-venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@if [ -f evaluation/report.html ]; then cp evaluation/report.html build/docs/report.html; fi
	@echo 'The documentation is in build/docs/index.html'

# IMAGES="a.raw b.raw" measures whole images instead of the samples; BENCH_OPTIONS as in tests/bench/README.md.
IMAGES ?= $(DEMO_IMAGES)
BENCH_OPTIONS ?=
# xdelta3 is compiled in if its source can be had.
$(STAMPS)/xdelta3: tests/bench/fetch_xdelta3.sh | $(STAMPS)
	tests/bench/fetch_xdelta3.sh build/xdelta3 || true
	@touch $@
build/bench/build.ninja: $(STAMPS)/venv $(STAMPS)/xdelta3
	rm -rf build/bench
	$(BIN)/meson setup build/bench . -Dpython=false -Dbenches=true \
	  -Dxdelta3_source=$$(if [ -f build/xdelta3/source/xdelta3.c ]; then echo $(abspath build/xdelta3/source); fi)

bench: build build/bench/build.ninja $(STAMPS)/images
	$(BIN)/ninja --quiet -C build/bench
	PYTHONPATH=tests $(BIN)/python -m bench.run --programs build/bench/tests/bench --command $(BIN)/diffengine $(BENCH_OPTIONS) $(IMAGES)

# The decoders read untrusted bytes. A corpus grows in build/fuzz/NAME, from what the encoders make of the samples; an input
# that is found to do harm stays there too, so that the next run fails until it is put right.
FUZZERS := fuzz_dense fuzz_holds fuzz_patch fuzz_ring
SECONDS ?= 60
$(STAMPS)/fuzz-packages: $(STAMPS)/packages
	@$(call install_missing,$(FUZZ_PACKAGES))
	@touch $@
build/fuzzers/build.ninja: $(STAMPS)/venv $(STAMPS)/fuzz-packages
	rm -rf build/fuzzers
	CC=clang $(BIN)/meson setup build/fuzzers . -Dpython=false -Dfuzzers=true -Dbuildtype=debugoptimized -Db_lundef=false

fuzz: build/fuzzers/build.ninja $(STAMPS)/images
	$(BIN)/ninja --quiet -C build/fuzzers $(addprefix native/fuzz/,$(FUZZERS) write_seeds)
	@mkdir -p $(addprefix build/fuzz/,$(FUZZERS))
	build/fuzzers/native/fuzz/write_seeds build/fuzz/fuzz_patch build/fuzz/fuzz_dense $(lastword $(DEMO_IMAGES))
	@for name in $(FUZZERS); do \
	  corpus=build/fuzz/$$name; log=$$corpus.log; echo "$$name for $(SECONDS) s, log in $$log"; \
	  build/fuzzers/native/fuzz/$$name -max_total_time=$(SECONDS) -timeout=10 -max_len=8192 -print_final_stats=1 \
	    -artifact_prefix=$$corpus/ $$corpus > $$log 2>&1 || { tail -n 60 $$log; echo "$$name: a finding, see above"; exit 1; }; \
	  grep -E '^Done|number_of_executed|slowest|peak_rss' $$log; \
	done

# A real Xen, in an emulator. Everything it is made from is kept under ~/.cache/diffengine-xen.
XEN_RIG := $(SUDO) env HOME=$(HOME) PYTHONPATH=tests $(BIN)/python -m xen.rig --share build/xen/share
$(STAMPS)/xen-packages: $(STAMPS)/packages
	@$(call install_missing,$(XEN_PACKAGES))
	@touch $@

test-xen-smoke: $(STAMPS)/venv $(STAMPS)/xen-packages
	$(XEN_RIG) --timeout 1800 test test_smoke.py

test-xen: $(STAMPS)/installed $(STAMPS)/xen-packages
	$(XEN_RIG) --timeout 7200 test

# On Debian's own hypervisor source, without the edit that lets AMD share.
$(STAMPS)/xen-intel-packages: $(STAMPS)/xen-packages
	@$(call install_missing,$(XEN_INTEL_PACKAGES))
	@touch $@

# bochs is some ten times slower than QEMU: what sharing and each form of evicted pages need, with a tenth of the pages.
XEN_INTEL_TESTS := test_smoke.py test_sharing.py test_representations.py test_totals.py
test-xen-several-vcpus: $(STAMPS)/venv $(STAMPS)/xen-packages
	$(XEN_RIG) --patched --timeout 1800 test several_vcpus.py

test-xen-intel: $(STAMPS)/venv $(STAMPS)/xen-intel-packages
	$(XEN_RIG)-intel --cpu intel --timeout 7200 test $(XEN_INTEL_TESTS)

xen-shell: $(STAMPS)/venv $(STAMPS)/xen-packages
	$(XEN_RIG) shell

# Nonsense for the status socket, and for xenstore; LINES=1000 is quick.
LINES ?= 100000
fuzz-socket: build $(STAMPS)/xen-extra
	PYTHONPATH=tests $(BIN)/python -m bench.xenstore_fuzz --values $(LINES)
	PYTHONPATH=tests $(BIN)/python -m bench.socket_fuzz --lines $(LINES)

# Man pages, from the programs' own help and docs/service.md:   man -l build/man/diffengine.1
man: $(STAMPS)/installed
	$(BIN)/python -m diffengine.cli.manual --docs docs --default systemd/diffengine.toml build/man

# The Debian package, from a copy of the sources; it is built for Debian's own Python. pip fetches what Debian does not have.
DEB_SOURCES := $(shell find debian systemd -type f) docs/service.md Makefile LICENSE README.md
$(STAMPS)/deb-packages: $(STAMPS)/packages
	@$(call install_missing,$(DEB_PACKAGES))
	@touch $@
$(STAMPS)/deb: $(NATIVE_SOURCES) $(PYTHON_SOURCES) $(DEB_SOURCES) meson.build meson_options.txt pyproject.toml $(STAMPS)/deb-packages
	rm -rf build/deb/source build/deb/diffengine_*
	mkdir -p build/deb/source
	tar -c --exclude=./build --exclude=./.venv --exclude=./.git --exclude=__pycache__ . | tar -x -C build/deb/source
	cd build/deb/source && dpkg-buildpackage --build=binary --unsigned-changes --unsigned-buildinfo
	lintian --fail-on error build/deb/diffengine_*.changes
	@touch $@
deb: $(STAMPS)/deb
	@ls build/deb/*.deb

# Installed, run and purged in a minimal Debian that is made for it; nothing of it may be left.
test-deb: $(STAMPS)/deb $(STAMPS)/venv
	$(SUDO) env PYTHONPATH=tests $(BIN)/python -m deb --tree build/deb/tree build/deb/diffengine_*.deb

clean:
	rm -rf build $(VENV)
