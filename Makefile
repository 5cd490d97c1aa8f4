# make test     everything the tests need, and the tests; as root, or through sudo
# make unit     those of the tests that need no root: as the user who calls it, in half a minute
# make fuzz     an hour of made-up messages, configurations and state files; FUZZ_S=60: a minute for each
# make programs connections of real programs, with all that are not needed for make test
# make attack   a user without privileges tries everything at once, for minutes; beside plain TCP
# make torture  lifecycle, alternation and sequences, for two hours
# make bench    figures for docs/benchmarks and the README, in twenty minutes; QUICK=1: in one, beside them
# make vm-test  the package on Debian kernels in virtual machines; KERNEL=6.1, 6.12, 7.3 or all of
#               these, or forky or sid, for that of Debian's testing or unstable; ARCH=arm64;
#               BOOTS=containers: with podman and Docker; BOOTS=reboots: rebooted ten times
# make semantics  docs/semantics.md, from what the conformance suite finds on this kernel
# make kernels  docs/kernels.md, from what the virtual machines found; semantics.md, too
# make first-day  docs/first-day.md, from what was typed in the one with 6.12
# make release-test  torture, fuzzer, attack, programs and all virtual machines: what .ci/run has no time for
# make check    static checks: Python, manual pages, unit, D-Bus policy
# make deb      dist/sockredird_*.deb
# make reproducible  builds it twice, in different surroundings, and compares
# make apt-repo KEY=<fingerprint>  dist/apt/, a repository for apt, signed by that key
# make demo     builds and installs the package, shows it at work
#
# All that is made goes to build/ and dist/. python3 found on PATH may be any: the product runs on
# the distribution's.

PYTHON := /usr/bin/python3
APT_INSTALL := packaging/apt-install
ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)

RUNTIME_DEPS := python3 python3-bpfcc python3-dbus-next python3-prometheus-client \
	python3-pydantic python3-rich python3-sdnotify libbpf1 dbus
TEST_DEPS := python3-pytest python3-hypothesis bpftool dbus-bin dbus-daemon gcc iproute2 \
	iptables libc6-dev mount netcat-openbsd nginx-light procps python3-fusepy redis-server socat \
	util-linux zsh
APT_REPO_DEPS := apt-utils gnupg
# of those that are not run in guests
HOST_TEST_DEPS := prometheus $(APT_REPO_DEPS)
# of bench/: what compiles its load generators, and the programs they are compared with
BENCH_DEPS := apache2-bin gcc haproxy libc6-dev iperf3 memcached nginx-light pgbouncer php-fpm \
	postgresql python3-grpcio python3-matplotlib redis-tools sockperf wrk
# of tests/bus/programs
PROGRAM_DEPS := golang-go haproxy memcached nginx-light nodejs pgbouncer postgresql redis-server
VM_DEPS := default-jdk-headless e2fsprogs golang-go mmdebstrap util-linux
# mmdebstrap asks it whether programs of the other architecture run
VM_FOREIGN_DEPS := arch-test
# In the guests only: what the tests there use besides.
VM_PACKAGES := bash-completion default-jre-headless man-db polkitd
VM_CONTENTS = $(RUNTIME_DEPS) $(TEST_DEPS) $(VM_PACKAGES)
CHECK_DEPS := python3-venv man-db systemd dbus-bin dbus-daemon util-linux
# As in packaging/debian/control; dpkg-buildpackage fails if one is missing here.
BUILD_DEPS := debhelper dh-python dpkg-dev pybuild-plugin-pyproject python3-all python3-setuptools

KERNEL := all
BOOTS := package
# of the guests, as Debian and Go call it
ARCH := amd64
HOST_ARCH := $(shell dpkg --print-architecture)
VM_PROGRAMS := build/programs/$(ARCH)
VENV := build/venv
# Directories, and scripts without a suffix
SOURCES := $(wildcard sockredird sockredirctl tests bench) \
	$(shell grep -lsE '^\#!.*python3' packaging/* tools/*)
MANPAGES := $(wildcard man/*.[58])

.PHONY: all release-test install-deps test unit fuzz attack programs torture semantics bench \
	vm-test vm-deps vm-roots kernels first-day \
	check check-deps check-python check-c check-man check-systemd check-dbus check-packaging \
	deb lintian reproducible apt-repo demo clean
all: deb

install-deps:
	@$(APT_INSTALL) $(RUNTIME_DEPS) $(TEST_DEPS) $(HOST_TEST_DEPS)

# PYTEST_ARGS="-k word" and the like reach pytest.
test: install-deps
	@test -z "$(ROOT)" || command -v sudo >/dev/null || \
		{ echo "make test: needs root, to load BPF programs" >&2; exit 1; }
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest $(PYTEST_ARGS)

# Called by root, they run as nobody: nothing may depend on privileges here.
AS_NOBODY := $(if $(ROOT),,setpriv --reuid=65534 --regid=65534 --clear-groups)
unit: install-deps
	$(AS_NOBODY) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -p no:cacheprovider \
		$(PYTEST_ARGS) tests/unit

# Six targets, FUZZ_S seconds each; `make test` gives them a minute together. All other properties
# are tried with new examples, too: `make test` has the same ones each time.
FUZZ_S := 600
fuzz: install-deps
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 SOCKREDIR_FUZZ_S=$(FUZZ_S) $(PYTHON) -m pytest \
		tests/unit $(PYTEST_ARGS)

# Seconds of attack on accelerated connections, and as many on plain TCP. `make test` has a short one.
ATTACK_S := 60
attack: install-deps
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 SOCKREDIR_ATTACK_S=$(ATTACK_S) $(PYTHON) -m pytest -s \
		tests/bus/service/test_attack.py tests/bus/service/test_trickle.py $(PYTEST_ARGS)

# What is installed of these, `make test` runs as well, without a limit of three seconds to join.
programs: install-deps
	@$(APT_INSTALL) $(PROGRAM_DEPS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 SOCKREDIR_QUIET=1 $(PYTHON) -m pytest -rs \
		tests/bus/programs $(PYTEST_ARGS)

# Two hours or so: kills, upgrades and cycles by the hundreds, where `make test` has a few, the last
# two also under 200 connections of real programs; programs that check every byte while directions
# go to TCP and back; sequences of calls.
# SOCKREDIR_SECONDS=300: how long each of those programs runs, instead of two minutes.
torture: install-deps
	@$(APT_INSTALL) $(PROGRAM_DEPS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 SOCKREDIR_TORTURE=1 SOCKREDIR_SECONDS=$(SOCKREDIR_SECONDS) \
		$(PYTHON) -m pytest tests/bus/lifecycle tests/bus/control/test_disable.py \
		tests/kernel/carry/test_alternation.py \
		tests/kernel/conformance/test_sequences.py

# QUICK=1: a part of it. NULL=1: nothing is accelerated, and every ratio has to be 1. SUSTAINED=1:
# streams of half a minute instead, for three quarters of an hour. SHORT=1: a connection per request
# instead, in blocks, for ten minutes.
# BASE=commit: compares that commit with this one, in half an hour; or BASE=directory, of a checkout.
# BENCH_ARGS="--only redis" and the like reach the benchmark.
BENCH_OUTPUT := $(if $(NULL),--null,$(if $(QUICK),--output docs/benchmarks/quick,\
	$(if $(SUSTAINED),--output docs/benchmarks/sustained,\
	$(if $(SHORT),--output docs/benchmarks/short,\
	$(if $(BASE),--output docs/benchmarks/base,\
	--output docs/benchmarks --readme README.md)))))
BASE_CHECKOUT := $(if $(wildcard $(BASE)/sockredird),$(BASE),build/base/$(BASE))
build/base/%:
	git clone -q --shared . $@
	git -C $@ checkout -q --detach $*

bench: install-deps $(if $(BASE),$(BASE_CHECKOUT))
	@$(APT_INSTALL) $(BENCH_DEPS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.:tests $(PYTHON) -m bench \
		$(if $(QUICK),--quick) $(if $(SUSTAINED),--sustained) $(if $(SHORT),--short) \
		$(if $(BASE),--base $(BASE_CHECKOUT)) $(BENCH_OUTPUT) $(BENCH_ARGS)

# Results of other kernels stay as they are.
semantics: install-deps
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 SOCKREDIR_RESULTS=tests/kernel/conformance/results \
		$(PYTHON) -m pytest tests/kernel/conformance/test_behaviours.py
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.:tests $(PYTHON) -m kernel.conformance.document

# What the package depends on, and the tests, is in the guests' root: they have no network.
# VM_PYTEST_ARGS="-k word" and the like reach pytest in the guests. FULL=1: the whole suites, which
# take an hour for each kernel, and not one test in sixteen. VM_TIMEOUT: seconds for each guest, all
# boots together; a busy host needs more.
VM_TIMEOUT := $(if $(FULL),7200)
VM = $(ROOT) env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests $(PYTHON) -m vm \
	--kernel $(KERNEL) --architecture $(ARCH) --boots $(BOOTS)
vm-test: deb vm-deps $(VM_PROGRAMS)/docker-proxy
	for program in copy ask; do \
		CGO_ENABLED=0 GOARCH=$(ARCH) GOCACHE=$(CURDIR)/build/go-cache GOFLAGS=-trimpath \
			go build -o $(VM_PROGRAMS)/$$program tests/vm/programs/$$program.go || exit 1; \
	done
	javac --release 17 -d $(VM_PROGRAMS) tests/vm/programs/Available.java
	$(VM) $(if $(VM_TIMEOUT),--timeout $(VM_TIMEOUT)) $(if $(FULL),--full) \
		--pytest="$(VM_PYTEST_ARGS)" --package dist/sockredird_*_all.deb $(VM_CONTENTS)

vm-deps:
	@$(APT_INSTALL) $(VM_DEPS) $(if $(filter-out $(HOST_ARCH),$(ARCH)),$(VM_FOREIGN_DEPS))

# Of the package, only that: it would bring a container engine into each root. Lists of its own: those
# of this host have its own architecture only.
APT_OF_ARCH = apt-get -q -o APT::Architecture=$(ARCH) -o APT::Architectures::=$(ARCH) \
	-o Dir::State::lists=$(CURDIR)/build/apt/$(ARCH) -o Dir::Cache=$(CURDIR)/build/apt/$(ARCH)
$(VM_PROGRAMS)/docker-proxy:
	mkdir -p $(@D) build/apt/$(ARCH)/partial
	cd $(@D) && $(APT_OF_ARCH) update && $(APT_OF_ARCH) download docker.io
	dpkg-deb --fsys-tarfile $(@D)/docker.io_*.deb | \
		tar -x -C $(@D) --strip-components=3 ./usr/sbin/docker-proxy
	rm $(@D)/docker.io_*.deb

# What vm-test does first, unless it is done.
vm-roots: vm-deps
	$(VM) $(VM_CONTENTS)

first-day:
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.:tests $(PYTHON) -m vm.first_day

# What .ci/run has no time for, see RELEASE.md.
release-test: torture fuzz attack programs
	$(MAKE) vm-test KERNEL=all
	$(MAKE) vm-test KERNEL=all BOOTS=containers
	$(MAKE) vm-test KERNEL=all BOOTS=reboots
	$(MAKE) vm-test KERNEL=forky
	$(MAKE) vm-test KERNEL=all ARCH=arm64

# From the results of the last `make vm-test`.
kernels:
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.:tests $(PYTHON) -m vm.document
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.:tests $(PYTHON) -m kernel.conformance.document

check: check-python check-c check-man check-systemd check-dbus check-packaging

check-deps:
	@$(APT_INSTALL) $(RUNTIME_DEPS) $(TEST_DEPS) $(CHECK_DEPS)

$(VENV)/installed: packaging/requirements-dev.txt | check-deps
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip --disable-pip-version-check install -q -r $<
	touch $@

check-python: $(VENV)/installed
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy --python-executable $(PYTHON)

C_SOURCES := $(shell find sockredird/bpf -name '*.[ch]' -not -path '*/kernel-shim/*')

# To apply it: build/venv/bin/clang-format -i FILE...
check-c: $(VENV)/installed
	$(VENV)/bin/clang-format --dry-run --Werror $(C_SOURCES)

# man warns on stderr and exits 0.
check-man: | check-deps
	@for page in $(MANPAGES); do \
		warnings=$$(LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l -Tutf8 -Z $$page 2>&1 >/dev/null); \
		test -z "$$warnings" || { echo "$$page: $$warnings" >&2; exit 1; }; \
		echo "$$page: no warnings"; \
	done

# The program need not be installed for its units to be right. A cycle in the order of the boot is
# found where the whole of it is asked for, and is no error to systemd-analyze.
check-systemd: | check-deps
	mkdir -p build/systemd/basic.target.wants build/systemd/multi-user.target.wants
	for unit in sockredird sockredird-restore; do \
		sed -E 's:^(Exec[A-Za-z]*)=(-?)/usr/bin/sockredir.*:\1=\2/bin/true:' \
			systemd/$$unit.service > build/systemd/$$unit.service || exit 1; \
	done
	ln -sf ../sockredird-restore.service build/systemd/basic.target.wants/
	ln -sf ../sockredird.service build/systemd/multi-user.target.wants/
	export SYSTEMD_LOG_LEVEL=warning SYSTEMD_UNIT_PATH=$(CURDIR)/build/systemd:; \
	systemd-analyze verify --man=no --recursive-errors=no build/systemd/sockredird.service && \
	systemd-analyze verify --man=no --recursive-errors=no \
		build/systemd/sockredird-restore.service && \
	! systemd-analyze verify --man=no /usr/lib/systemd/system/multi-user.target 2>&1 | \
		grep -A 3 "ordering cycle"
	systemd-analyze security --offline=yes --threshold=25 build/systemd/sockredird.service \
		> build/systemd/security; status=$$?; tail -1 build/systemd/security; exit $$status

check-dbus: | check-deps
	$(ROOT) packaging/check-dbus

check-packaging: | check-deps
	for script in packaging/apt-install packaging/apt-repo packaging/reproducible \
		packaging/debian/*.prerm packaging/debian/*.postrm packaging/debian/tests/installed; do sh -n $$script || exit 1; done
	bash -n .ci/run
	bash -n completions/sockredirctl.bash
	zsh -n completions/_sockredirctl

# The binary package is built from the source package, which holds all of a checkout, with debian/
# where dpkg-buildpackage wants it. To build it elsewhere, from dist/sockredird_*.dsc:
#   dpkg-source -x sockredird_*.dsc && cd sockredird-*/ && sudo apt build-dep . && dpkg-buildpackage
# dpkg-buildpackage takes SOURCE_DATE_EPOCH from the changelog, as tar does its time here.
# --ignore-builtin-builddeps: there is nothing to compile, so no C compiler is needed.
SOURCE_FILES := LICENSE Makefile *.md .clang-format .editorconfig pyproject.toml bench completions dbus \
	docs man packaging polkit sockredirctl sockredird systemd tests tools
UPSTREAM = $(shell sed -n '1s/[^0-9]*\([0-9.]*\)-.*/\1/p' packaging/debian/changelog)
DEB_TREE = build/deb/sockredird-$(UPSTREAM)
deb:
	@$(APT_INSTALL) $(BUILD_DEPS)
	rm -rf build/deb dist
	mkdir -p $(DEB_TREE) dist
	cp -R $(SOURCE_FILES) $(DEB_TREE)
	find build/deb -name __pycache__ -prune -exec rm -r {} +
	chmod -R u=rwX,go=rX build/deb # whatever the umask
	mv $(DEB_TREE)/packaging/debian build/deb
	tar --create --xz --sort=name --owner=0 --group=0 --numeric-owner --directory=build/deb \
		--mtime="$$(dpkg-parsechangelog -l build/deb/debian/changelog -S Date)" \
		--file=build/deb/sockredird_$(UPSTREAM).orig.tar.xz sockredird-$(UPSTREAM)
	mv build/deb/debian $(DEB_TREE)
	cd $(DEB_TREE) && dpkg-buildpackage -us -uc --ignore-builtin-builddeps
	find build/deb -maxdepth 1 -type f -exec cp {} dist \;

lintian: deb
	@$(APT_INSTALL) lintian
	lintian --allow-root --fail-on error,warning --info dist/*.changes

reproducible:
	@$(APT_INSTALL) $(BUILD_DEPS)
	packaging/reproducible $(SOURCE_FILES)

# As the user who has the key: gpg asks for its passphrase.
apt-repo:
	@test -n "$(KEY)" || \
		{ echo "make apt-repo: KEY=<fingerprint>: which key is to sign?" >&2; exit 1; }
	@$(APT_INSTALL) $(APT_REPO_DEPS)
	$(MAKE) deb
	packaging/apt-repo "$(KEY)"

demo: install-deps deb
	$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --reinstall \
		./dist/sockredird_*_all.deb
	$(ROOT) tools/demo

clean:
	rm -rf build dist .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -r {} +
