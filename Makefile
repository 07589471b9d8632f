# make demo   see it work, on a real sanoid, OpenZFS, libvirt and QEMU, in a lab of its own
# make test   everything that CI runs
# make faults all of the lab, with every fault at every step, of which `make test` runs a part:
#             hours. Goes on where it stopped, and with what failed; FRESH=1 begins anew.
# make bench  what it costs, beside the usual hooks: hours; goes on where it stopped. SHORT=1: one
#             cell of each kind, K=part,part: cells so named, ARGS=--docs: into docs/performance.*.
# make deb    the Debian packages, into build/. Installs what it needs, and asks PyPI for two wheels.
# make docs   the pages as a site, into build/site; a link that leads nowhere makes it fail.
# The rest is for the inner loop: unit, lint, libguestfs, lab-test K=expression, lab-down, clean.
# LABS=n: so many labs share the tests; by default one for each CPU, up to four.

VENV := .venv
PYTEST := $(VENV)/bin/pytest
K ?=
SITE ?= build/site
LABS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
# Tests one by one to whichever lab is free.
IN_LABS = -n $(LABS) --dist load --maxschedchunk 1

.PHONY: demo test unit lint libguestfs lab-test faults bench deb docs site lab-down clean needs

demo: needs
	@tests/lab/lab build
	@ZVMSNAP_LAB_INSTANCE=demo python3 tests/lab/demo.py

test: needs $(VENV)/ready
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint unit
	@$(MAKE) --no-print-directory lab-test

unit: $(VENV)/ready
	$(PYTEST)

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check zvmsnap hooks tools tests/unit tests/scenarios tests/fakes
	$(VENV)/bin/mypy

# The environment does not find Debian's python3-guestfs, and `make unit` should not start machines.
libguestfs: $(VENV)/ready
	mkdir -p build/guestfs
	ln -sf /usr/lib/python3/dist-packages/*guestfs*.* build/guestfs
	PYTHONPATH=build/guestfs $(PYTEST) -rs tests/scenarios/test_real_libguestfs.py

lab-test: needs $(VENV)/ready
	@tests/lab/lab build
	$(PYTEST) tests/lab $(IN_LABS) $(if $(K),-k "$(K)",--durations=25)

faults: needs $(VENV)/ready
	@tests/lab/lab build
	$(if $(FRESH),rm -f build/lab.jsonl)
	$(PYTEST) tests/lab $(IN_LABS) --faults=all --missing

bench: needs $(VENV)/ready
	@tests/lab/lab build
	@ZVMSNAP_LAB_INSTANCE=$${ZVMSNAP_LAB_INSTANCE:-bench} PYTHONPATH=tests/lab $(VENV)/bin/python \
		-m bench $(if $(SHORT),--short) $(if $(FRESH),--fresh) $(if $(K),--only "$(K)") $(ARGS)

deb: $(VENV)/ready
	@tools/needs
	$(VENV)/bin/python -m tools.deb

docs: $(VENV)/ready
	@$(MAKE) --no-print-directory site PYTHON=$(VENV)/bin/python

# Links between the pages are those of the repository, so they are put where they are in it.
site:
	rm -rf $(SITE) $(SITE)-source
	mkdir -p $(SITE)-source
	cp --parents -r README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs tests/lab/README.md \
		tests/lab/bench/usual/pre $(SITE)-source
	SITE=$(abspath $(SITE)) SITE_SOURCE=$(abspath $(SITE)-source) $(PYTHON) -m mkdocs build
	@echo "$(SITE)/index.html"

lab-down:
	@tests/lab/lab down

clean:
	rm -rf $(VENV) build *.egg-info

needs:
	@tests/lab/needs

$(VENV)/ready: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
