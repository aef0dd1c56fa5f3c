# SPDX-License-Identifier: Apache-2.0
# A thin front to Meson: `make demo` and `make check` are the two commands.

BUILD ?= build
MESON_ARGS ?=
ifeq ($(CI),true)
MESON_ARGS += -Dwerror=true
endif

.PHONY: all deps build assets demo check lint fuzz install clean help

all: build

help:
	@echo "make demo     boot a Linux guest and show what quire did"
	@echo "make check    every test and check; ends with 'N passed, N failed, N skipped'"
	@echo "make build    leave build/quire (installs what is missing first)"
	@echo "make deps     install the Debian packages that are missing"
	@echo "make assets   fetch lab kernels, build lab and guest initramfs"
	@echo "make lint     clang-format, clang-tidy, cppcheck"
	@echo "make fuzz     fuzz each parser for FUZZ_SECONDS (default 60)"
	@echo "make install  install quire and its manual (DESTDIR=...)"
	@echo "make clean    remove build trees and lab assets"

deps:
	@scripts/deps

$(BUILD)/build.ninja: | deps
	@meson setup $(BUILD) $(MESON_ARGS)

# $(BUILD)/quire is a link, so that the program is found without knowing layers.
build: $(BUILD)/build.ninja
	@ninja -C $(BUILD)
	@ln -sf src/cli/quire $(BUILD)/quire

assets: deps
	@lab/assets

demo: build assets
	@scripts/demo

check: build assets
	@tests/run --build $(BUILD)

lint: build
	@scripts/lint $(BUILD)

fuzz: deps
	@tests/run --build $(BUILD) --only fuzz --fuzz-seconds $${FUZZ_SECONDS:-60}

install: build
	@meson install -C $(BUILD) $(if $(DESTDIR),--destdir $(DESTDIR))

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan
