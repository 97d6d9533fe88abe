# Taskpass. `make` lists what there is; `make demo` is the place to begin.

GO            ?= go
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.DEFAULT_GOAL := help

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install PostgreSQL's server programs if this machine has none
	@.ci/setup postgres

.PHONY: build
build: ## build bin/taskpass
	$(GO) build -o bin/taskpass ./cmd/taskpass

.PHONY: demo
demo: setup ## a broker, its database and sandboxed vendors, shown in a minute
	@.ci/compile 'the demo' '2 to 4 minutes' ./cmd/taskpass
	@$(MAKE) --no-print-directory -s build
	@echo 'Starting a private PostgreSQL, a broker, and stand-ins for the vendors: about ten seconds.'
	bin/taskpass demo

.PHONY: dev
dev: setup build ## a broker to develop against, with sandboxed vendors
	bin/taskpass dev

.PHONY: test
test: setup ## the tests on a real PostgreSQL; test-long, test-browser and test-peers have the others
	@.ci/compile 'the tests' '3 to 5 minutes' -test ./...
	@echo 'Running the tests, each package on a PostgreSQL of its own: 2 to 3 minutes. A package is reported at its end.'
	@$(GO) test -vet=off -timeout 15m ./...

.PHONY: test-race
test-race: setup ## the tests under the race detector (needs a C compiler)
	@.ci/setup compiler
	@$(GO) test -vet=off -race -short -timeout 30m ./...

.PHONY: test-long
test-long: setup ## longer matrices and sequences: crashes, configuration, the record's proof, the model, the fleet of keys
	TASKPASS_LONG=1 $(GO) test -count=1 -timeout 30m ./cmd/taskpass/crashtest ./cmd/taskpass/config ./audit/tree
	TASKPASS_LONG=1 $(GO) test -count=1 -timeout 30m -run 'TestThousands|TestTilesOfTiles' ./audit/sequence
	TASKPASS_LONG=1 $(GO) test -count=1 -timeout 30m -run TestSearchesByTime ./audit
	TASKPASS_LONG=1 $(GO) test -count=1 -timeout 30m -run 'TestModel|TestFleet|TestRotationUnderLoad' ./broker/lifetest -rapid.checks=60 -fleet.rounds=12

.PHONY: test-browser
test-browser: setup ## the console in Chromium, in both colour schemes and on a phone's width
	@.ci/setup browser
	$(GO) test -tags browser -count=1 -timeout 30m ./audit/console/...

.PHONY: test-model
test-model: setup ## new random sequences against the model of a credential's life; long
	$(GO) test ./broker/lifetest -run TestModel -count=1 -timeout 30m -rapid.checks=200 -rapid.seed=$$(date +%s)

.PHONY: test-peers
test-peers: setup ## the tests against independent servers and clients (Ceph's RADOS gateway, stripe-mock, vendors' SDKs)
	@.ci/setup peers
	@packages=$$(git grep -l --untracked -E '^//go:build .*\bpeers\b' -- '*.go' | xargs -r -n1 dirname | sort -u | sed 's|^|./|'); \
	if [ -z "$$packages" ]; then echo 'no test has the build tag peers'; exit 0; fi; \
	set -x; $(GO) test -tags peers -run Peers -count=1 -timeout 30m $$packages

.PHONY: screenshots
screenshots: setup ## draw the console's pictures in docs/images from the demo (needs Chromium)
	@.ci/setup browser
	$(GO) test -tags browser,screenshots -run TestScreenshots -count=1 ./cmd/taskpass

.PHONY: bench
bench: setup ## how fast a credential is issued, end to end, on this machine
	$(GO) test -run '^$$' -bench . -benchtime 10s ./cmd/taskpass

.PHONY: bench-audit
bench-audit: setup ## what an auditor waits for; TASKPASS_BENCH_EVENTS=10000000 for a record of ten million events
	TMPDIR=$${TMPDIR:-/var/tmp} $(GO) test -run '^$$' -bench Search -benchtime 300x -timeout 180m ./audit

.PHONY: lint
lint: ## go vet, gofmt, golangci-lint
	$(GO) vet -tags browser,peers,screenshots ./...
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w is due on:"; echo "$$unformatted"; exit 1; fi
	$(GO) run $(GOLANGCI_LINT) run

.PHONY: generate
generate: ## write the generated code anew
	$(GO) generate ./...

.PHONY: generate-check
generate-check: generate ## fail if the generated code in git is not what generate writes
	git diff --exit-code
	@untracked=$$(git ls-files --others --exclude-standard); \
	if [ -n "$$untracked" ]; then echo "not in git:"; echo "$$untracked"; exit 1; fi

.PHONY: compose-secrets
compose-secrets: ## write random passwords and keys for docker compose into secrets/
	@.ci/compose-secrets

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
