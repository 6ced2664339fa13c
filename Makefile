# vmstore: the commands a person or a CI runs. Needs make and a Debian machine; tests/setup installs the rest.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmstore
# Outside the clone, so that clones share the build of RocksDB.
export CARGO_TARGET_DIR ?= $(CACHE)/target
# The programs that are tested; `make programs` puts them there.
export VMSTORE_PROGRAMS ?= $(CARGO_TARGET_DIR)/programs
# The real images, kept between runs.
export VMSTORE_IMAGES ?= $(CACHE)/images
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

# Where make install puts things; DESTDIR is put before all of it, for packages.
prefix ?= /usr/local
bindir ?= $(prefix)/bin
mandir ?= $(prefix)/share/man
unitdir ?= $(prefix)/lib/systemd/system
bash_completions ?= $(prefix)/share/bash-completion/completions
zsh_completions ?= $(prefix)/share/zsh/site-functions
fish_completions ?= $(prefix)/share/fish/vendor_completions.d

CARGO ?= cargo
INSTALL ?= install
names := vmstore vmfs
units := $(notdir $(wildcard packaging/systemd/*))
.DEFAULT_GOAL := help
.PHONY: help setup images programs install uninstall demo test acceptance check fuzz torture soak bench

help:
	@echo 'make demo        install what is needed, build, and show two nights of a real Debian image, and a guest of a clone'
	@echo '                 IMAGE=path   use your own image (it is only read)'
	@echo '                 SIZE=full    use the 8 GiB image with a LAMP stack'
	@echo '                 KEEP=1       keep the store and the restored images'
	@echo 'make programs    build vmstore and vmfs, and put them where the tests look for them'
	@echo 'make install     build, and install the programs, manual pages, shell completions and systemd units'
	@echo '                 prefix=/usr/local   the directory to install below; DESTDIR=  put before it, for packages'
	@echo 'make uninstall   remove what make install put there'
	@echo 'make test        install what is needed and run the tests, except those of make acceptance'
	@echo 'make acceptance  run the tests that boot guests or take long, and the demo'
	@echo 'make check       check layers, width of text, formatting, lints and documentation; warnings are errors'
	@echo 'make fuzz        run every decoder under libFuzzer; FUZZ_SECONDS=60 each, TARGETS="NAME ..." only these'
	@echo 'make torture     run every attack on the store in its long form, then fuzz as above'
	@echo '                 TORTURE_SECONDS=3600 in all, ATTACKS="NAME ..." only these, FUZZ_SECONDS=0 leaves fuzz out'
	@echo 'make soak        simulate nights of three sites under readers and writers; SOAK="--seconds 1800" passes options'
	@echo 'make bench       compare with zstd, restic, borg, rsync and QEMU; BENCH="--runs 1 --only NAME" passes options'

setup:
	@tests/setup

install: programs
	$(INSTALL) -d "$(DESTDIR)$(bindir)" "$(DESTDIR)$(mandir)/man1" "$(DESTDIR)$(unitdir)" \
	    "$(DESTDIR)$(bash_completions)" "$(DESTDIR)$(zsh_completions)" "$(DESTDIR)$(fish_completions)"
	set -e; for program in $(names); do \
	    $(INSTALL) -m 755 "$(VMSTORE_PROGRAMS)/$$program" "$(DESTDIR)$(bindir)/$$program"; \
	    "$(VMSTORE_PROGRAMS)/$$program" man --dir "$(DESTDIR)$(mandir)/man1"; \
	    "$(VMSTORE_PROGRAMS)/$$program" completions bash >"$(DESTDIR)$(bash_completions)/$$program"; \
	    "$(VMSTORE_PROGRAMS)/$$program" completions zsh >"$(DESTDIR)$(zsh_completions)/_$$program"; \
	    "$(VMSTORE_PROGRAMS)/$$program" completions fish >"$(DESTDIR)$(fish_completions)/$$program.fish"; \
	done
	set -e; for unit in $(units); do \
	    sed 's|/usr/bin/|$(bindir)/|' "packaging/systemd/$$unit" >"$(DESTDIR)$(unitdir)/$$unit"; \
	done

uninstall:
	cd "$(DESTDIR)$(unitdir)" && rm -f $(units)
	set -e; for program in $(names); do \
	    rm -f "$(DESTDIR)$(bindir)/$$program" "$(DESTDIR)$(bash_completions)/$$program" \
	        "$(DESTDIR)$(mandir)/man1/$$program.1" "$(DESTDIR)$(mandir)/man1/$$program"-*.1 \
	        "$(DESTDIR)$(zsh_completions)/_$$program" "$(DESTDIR)$(fish_completions)/$$program.fish"; \
	done

images: setup
	@tests/make-images small "$(VMSTORE_IMAGES)"

# The programs that tests, demo and benchmarks run, where no later build with the features of tests overwrites them.
# They are as old as the beginning of their build, so that a source that is changed meanwhile is newer.
programs: setup
	@mkdir -p "$(VMSTORE_PROGRAMS)" && touch "$(VMSTORE_PROGRAMS)/.started"
	$(CARGO) build --release --locked --package cli
	@for file in vmstore vmfs; do \
		install "$(CARGO_TARGET_DIR)/release/$$file" "$(CARGO_TARGET_DIR)/release/$$file.d" "$(VMSTORE_PROGRAMS)" && \
		touch --reference="$(VMSTORE_PROGRAMS)/.started" "$(VMSTORE_PROGRAMS)/$$file" || exit; \
	done

demo: programs
	@tests/demo

# Many tests wait for processes or the network, so twice as many run at once as there are processors.
test: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
test: programs images
	$(CARGO) test --release --locked --workspace

acceptance: programs images
	$(CARGO) test --release --locked --workspace --tests -- --ignored
	@tests/demo

check:
	tests/layers --self-test
	tests/layers
	tests/text-width --self-test
	tests/text-width
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --workspace --no-deps

fuzz: setup
	@tests/fuzz $(TARGETS)

torture: setup
	@tests/torture $(ATTACKS)

soak: programs
	$(CARGO) build --release --locked --workspace --bin soak
	"$(CARGO_TARGET_DIR)/release/soak" $(SOAK)

bench: programs
	@tests/setup bench
	$(CARGO) build --release --locked --workspace --bins
	"$(CARGO_TARGET_DIR)/release/bench" --images "$(VMSTORE_IMAGES)" $(BENCH)
