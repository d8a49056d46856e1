# Thin: each target is a script that can be read and run by itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: ablations accuracy bench-train bench-rollout chaos help demo demo-clean test test-long unit fuzz e2e test-cluster test-chart test-dashboards test-registry test-plain test-clients test-alerts book soak lint bench-serve crds images install cluster cluster-down test-gateway plugin test-plugin bench-platform test-compose test-docs test-book bench-operator test-reproducible

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## From nothing to a prediction: cluster, images, chart, training, deployment (DATA=folder or tar of your photos)
	@DATA='$(DATA)' scripts/demo

demo-clean: ## Remove what the demo made in the cluster
	@scripts/demo clean

test: ## All tests but those of `make test-long`: unit, parity with PyTorch, end to end on a real cluster
	@scripts/test

test-long: ## The book, Compose's services, canaries through a Gateway, the commands of the documentation (30 minutes)
	@scripts/test long

unit: ## Tests that need no cluster
	@scripts/test unit

fuzz: ## Fuzz every reader of bytes from outside, each for a minute (SECONDS=10; 12 minutes)
	@scripts/fuzz '$(or $(SECONDS),60)'

e2e: ## Tests on a real cluster
	@scripts/test e2e

test-cluster: ## Prove what the tests' own Kubernetes promises: repair, two instances, two nodes, no trace (5 minutes)
	@tests/cluster/test

test-chart: ## The chart's life on a real cluster: install, upgrade, rollback, deployments that go wrong, uninstall (11 minutes on a busy machine)
	@scripts/test chart

test-gateway: ## Canaries through Envoy Gateway, under load (4 minutes; the first time it is built, 10 more)
	@scripts/test gateway

test-dashboards: ## Every query of the dashboards, asked of a real Prometheus that scrapes real pods (2 minutes)
	@scripts/test dashboards

test-plain: ## The manifests for those without the operator, on a real cluster (1 minute)
	@scripts/test plain

test-docs: ## The commands of the documentation on a real cluster, the walk-through from data to deployment among them (15 minutes)
	@scripts/test docs

test-clients: ## The server asked by Triton's client and by Chromium (half a minute)
	@scripts/test clients

test-plugin: ## kubectl's plugin as a release has it, installed by krew (a minute after it is built)
	@scripts/test plugin

test-registry: ## Images and chart pushed to a real registry and pulled again (1 minute)
	@scripts/test registry

test-reproducible: ## Build the operator's image twice, once from nothing, and compare (10 minutes)
	@tests/reproducible/run

test-compose: ## The services of compose.yaml as processes, each with its own health check (2 minutes)
	@scripts/test compose

test-alerts: ## Unit tests of the alerts, with promtool
	@tests/monitoring/alerts

soak: ## Interrupt trainings 200 times and compare every ending; kill the operator 100 times; 10,000 requests during restarts; 20 minutes of load (90 minutes)
	@scripts/soak

bench-rollout: ## 100 rollouts under load: nothing lost, nothing shown that has not passed (ROLLOUTS=10 for fewer; 30 s each)
	@scripts/bench-rollout

chaos: ## Break the operator on purpose: 60 faults that follow from a seed, under an independent observer (FAULTS=500 SEED=7; 8 minutes)
	@scripts/chaos

lint: ## Formatting, clippy, generated files, shell scripts, chart, alerts
	@scripts/lint

test-book: ## The documentation as a book: its links, and its diagrams in Chromium (10 seconds; the first time 3 minutes more)
	@scripts/test book

book: ## Build the documentation as a book in .anneal/book
	@scripts/book

accuracy: ## Train with our recipe and measure it on val and test (DATA=folder with train, val, test; RECIPE=file; 70 minutes)
	@DATA='$(DATA)' RECIPE='$(RECIPE)' tests/bench/accuracy/run

ablations: ## What each ingredient of that recipe is worth, in a short, small form of it (DATA=the same EPOCHS=8; twelve trainings)
	@DATA='$(DATA)' EPOCHS='$(EPOCHS)' tests/bench/accuracy/run ablations

crds: ## Generate crds/, the chart's copies and docs/api-reference.md from the types
	@. scripts/environment && cargo run --quiet -p anneal-operator --bin crdgen

images: ## Build the three images and bring them to the cluster (IMAGE_REGISTRY=host/path pushes them)
	@scripts/images

plugin: ## Build kubectl's plugin, one static binary, in .anneal/bin
	@scripts/plugin

install: ## Install the operator with these images into the cluster
	@. scripts/environment && cluster && scripts/install

bench-train: ## Compare training with PyTorch and a torchvision DataLoader (DATA=folder with train/ and val/; 12 minutes)
	@DATA='$(DATA)' tests/bench/train/run

bench-platform: ## What Anneal takes of a platform: components, idle memory, seconds to training and to traffic (5 minutes)
	@. scripts/environment && cluster && scripts/images && scripts/install && tests/bench/platform/run

bench-operator: ## Compare the operator with the bare Job controller and JobSet on fake nodes (RUNS=10000 DEPLOYMENTS=1000 for more; 7 minutes)
	@RUNS='$(RUNS)' DEPLOYMENTS='$(DEPLOYMENTS)' PEER='$(PEER)' FAKED='$(FAKED)' tests/bench/operator/run

bench-serve: ## Compare the server with FastAPI and LitServe on PyTorch and with the bare forward pass (DATA=folder or tar of photos)
	@DATA='$(DATA)' tests/bench/serve/run

cluster: ## Bring up a real Kubernetes for this checkout (NODES=2 for two nodes) and print its KUBECONFIG
	@NODES='$(or $(NODES),1)' tests/cluster/cluster up

cluster-down: ## Remove that cluster without a trace
	@tests/cluster/cluster down
