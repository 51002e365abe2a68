# `make demo` and `make test` need nothing but a Rust toolchain and, for missing packages, root on Debian or Ubuntu.

.PHONY: deny images test-images site test-chart shape screens compare-admin demo test test-cluster cluster cluster-down packages cluster-packages bench bench-cluster bench-compare bench-scrape bench-wiretap bench-files bench-counts budgets fuzz soak
.DEFAULT_GOAL := help

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /	/'

demo: ## The main job, end to end, in separate processes; SERVE=1 stays up
	@echo "Building four programs without optimisation and Kubernetes; the first time takes some minutes, then the demo a few seconds"
	cargo build --profile demo --no-default-features -p traffic-agent -p traffic-manager -p intercept -p harness --bins
	@HARNESS_BUILT=1 bash -mc "$${CARGO_TARGET_DIR:-target}/demo/demo" # a job of its own, so that Ctrl-C ends it and not make

test: packages ## Every test; installs the packages they need
	cargo build --workspace --bins --test layers
	HARNESS_BUILT=1 cargo test --workspace --no-fail-fast

test-chart: cluster-packages ## The chart, rendered by a real Helm
	tests/chart/test_chart.py

images: ## Both container images in target/images, without a container engine
	images/build

site: ## The documentation's links, and the site in target/site/book; needs mdbook
	docs/build-site

test-images: images ## What is in the images, how large they are, and that they are the same each time
	tests/images/test_images.py

test-cluster: cluster-packages ## The tests that need a real Kubernetes; about ten minutes more the first time
	tests/cluster/test

cluster: cluster-packages ## A real Kubernetes that stays up, with the images of `make images`, and the lines to try
	tests/cluster/rig down
	tests/cluster/rig up
	@[ ! -d target/images ] || tests/cluster/rig load target/images/*/*.tar
	@tests/cluster/try

cluster-down: ## Ends it
	tests/cluster/rig down

shape: ## Figures of the code's shape beside their limits; tests/shape --list KEY shows what is behind one
	tests/shape

deny: ## Licences, sources and bans of dependencies; and known vulnerabilities, where the database can be had
	.ci/run deny advisories

screens: ## Screenshots of every page in target/screens; needs chromium
	cargo build --workspace --bins
	tests/screens/run

compare-admin: ## The admin beside a real Envoy's; needs pip
	cargo build -p traffic-agent
	tests/envoy-admin/compare.py

packages:
	tests/install-packages

cluster-packages:
	tests/install-packages tests/packages.txt tests/cluster/packages.txt

soak: packages ## Chaos for HOURS=1: programs killed, stopped and cut off under load, every request accounted for; SEED=n
	cargo build --workspace --bins --test chaos
	HARNESS_BUILT=1 CHAOS_SECONDS=$$(( $${HOURS:-1} * 3600 )) CHAOS_SEED=$${SEED:-$$(date +%s)} cargo test --workspace --test chaos -- --nocapture

fuzz: ## Every parser under fire for a minute each
	fuzz/run 60

# Explained in benches/README.md.

bench: ## Criterion benches of the hot path's parts
	cargo bench -p harness

bench-compare: ## The agent beside Envoy, HAProxy and nginx; table and plot in target/bench/
	cargo build --release -p traffic-agent -p traffic-manager -p intercept
	benches/compare/compare.py

bench-cluster: images cluster-packages ## Memory of a manager of 5 000 pods, time of an admission, idle requests; needs root
	cargo build --release -p intercept
	benches/cluster/bench.py

bench-scrape: ## What watching the agent costs its callers
	cargo build --release -p traffic-agent -p traffic-manager -p intercept
	benches/compare/scrape.py

bench-wiretap: ## What a wiretap, and one that stalls, costs the callers of the app
	cargo build --release -p traffic-agent -p traffic-manager -p intercept
	benches/compare/wiretap.py

bench-files: ## Copies of 1 GiB through sshfs: our SFTP server beside OpenSSH's
	cargo build --release -p traffic-agent
	benches/compare/files.py

bench-counts: ## Instruction counts against benches/counts.json
	benches/counts.py

budgets: ## Memory, descriptors, start-up, size, wake-ups of an idle agent
	cargo build --release -p traffic-agent -p traffic-manager -p intercept
	benches/compare/budgets.py
