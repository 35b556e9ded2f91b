# TinyKV. `make` builds; `make help` lists what else there is.

GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS = -X github.com/tinykv/tinykv/pkg/cli.Version=$(VERSION)
PKGS = ./...
N ?= 10
SEED ?=
SEEDS ?= 300

.PHONY: man screenshot dist deploy-check tikv tikv-207 tikv-85 test-seaweedfs attack conformance lint-full cover build kv scheduler ctl demo test test-race lint fmt-check tidy-check proto proto-check \
	project2 project2a project2b project2c project3 project3a project3b project3c project4 project4a project4b project4c stress-suites sim sim-planted sim-sched sched-kills crash errors power model corrupt chaos planted fuzz ci clean help \
	bench-build bench-compare bench-regions bench-plots bench-trouble

build: ## build bin/tinykv-server, bin/tinyscheduler, bin/tinyctl
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

kv: ## build bin/tinykv-server only
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/tinykv-server ./cmd/tinykv-server

scheduler: ## build bin/tinyscheduler only
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/tinyscheduler ./cmd/tinyscheduler

ctl: ## build bin/tinyctl only
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/tinyctl ./cmd/tinyctl

dist: ## tarballs, deb packages, lists of what is linked in and SHA256SUMS, in bin/dist; the same commit gives the same bytes
	GO='$(GO)' deploy/packages/dist.sh '$(VERSION)' '$(LDFLAGS)'

man: ctl ## the manual page of tinyctl, bin/man/tinyctl.1
	@mkdir -p bin/man
	bin/tinyctl man >bin/man/tinyctl.1

screenshot: build ## docs/scheduler-page.png from a playground; needs chromium-headless-shell
	docs/screenshot.sh docs/scheduler-page.png

demo: build ## store Go's source tree in a cluster, kill a store, compare every byte
	bin/tinyctl demo

test: build ## the tests that every change must pass
	$(GO) test -timeout 20m $(PKGS)
	$(GO) test -count=1 -timeout 20m ./tests/chaos -args -histories 10 -duration 5s
	cd tests/conformance && $(GO) test -count=1 -short ./...
	cd tests/deploy && $(GO) test -count=1 ./...

test-race: ## the short tests under the race detector
	$(GO) test -race -short -timeout 30m $(PKGS)

project2a: ## course suites 2AA, 2AB, 2AC
	$(GO) test -count=1 -run '2A' ./raft/...

project2b: ## course suite 2B
	$(GO) test -count=1 -timeout 20m -run '2B' ./tests/...

project2c: ## course suite 2C, raft and store
	$(GO) test -count=1 -timeout 20m -run '2C' ./raft/... ./tests/...

project2: project2a project2b project2c ## all of project 2

project3a: ## course suite 3A
	$(GO) test -count=1 -run '3A' ./raft/...

project3b: ## course suite 3B
	$(GO) test -count=1 -timeout 30m -run '3B' ./tests/...

project3c: ## course suite 3C
	$(GO) test -count=1 -run '3C' ./scheduler/... ./cmd/tinyscheduler

project3: project3a project3b project3c ## all of project 3

project4a: ## course suite 4A
	$(GO) test -count=1 -run '4A' ./kv/transaction/...

project4b: ## course suite 4B
	$(GO) test -count=1 -run '4B' ./kv/transaction/...

project4c: ## course suite 4C
	$(GO) test -count=1 -run '4C' ./kv/transaction/...

project4: project4a project4b project4c ## all of project 4

stress-suites: ## project2 to project4, N times in a row
	@for i in $$(seq 1 $(N)); do echo "round $$i of $(N)"; $(MAKE) project2 project3 project4 || exit 1; done

sim: ## raft simulation: SEED=n replays one seed, SEEDS=n runs many
	$(GO) run ./raft/rafttest/cmd/raftsim $(if $(SEED),-seed $(SEED) -v,-seeds $(SEEDS))

sim-planted: ## how many seeds find each planted bug of raft, medians of 10 tries
	@mkdir -p bin/planted
	$(GO) run -overlay "$$($(GO) run ./raft/rafttest/cmd/plantraft raft bin/planted)" -tags planted ./raft/rafttest/cmd/raftsim -planted all

sim-sched: ## placement simulation; SIM_LONG=1 adds the scenario of 110 stores
	SIM_SLOW=1 $(GO) test -count=1 -timeout 30m -v ./scheduler/sim

KILLS ?= 200
sched-kills: ## kill and pause placement members KILLS times under clients, SEED chooses
	SCHED_KILLS=$(KILLS) SCHED_SEED=$(SEED) $(GO) test -count=1 -timeout 120m -v -run TestKills3C ./cmd/tinyscheduler

SCALE ?= 5
crash: ## stop a store at every operation of every scenario, SCALE times over
	$(GO) test -count=1 -timeout 60m -v -run TestCrash ./tests/crash -args -scale $(SCALE)

ERRORS ?= 50000
errors: ## fail the operations of a store's disk one at a time, in ERRORS runs of all scenarios
	$(GO) test -count=1 -timeout 120m -v -run TestErrors ./tests/crash -args -errors $(ERRORS)

LOSSES ?= 25
power: ## take the power from a whole cluster LOSSES times, on a file system that forgets what was not synced
	$(GO) test -count=1 -timeout 60m -v ./tests/power -args -rounds $(LOSSES) -seed $(if $(SEED),$(SEED),1)

model: ## search the large configurations of the model of region merge; takes some 20 minutes and 3 GiB
	$(GO) test -count=1 -timeout 90m -v -run TestMergeModel ./tests/model -args -long

DURATION ?= 8s
chaos: ## N histories with real processes and faults that rage for DURATION or as long as they need, from SEED on
	$(GO) test -count=1 -timeout 24h -v -run TestChaos ./tests/chaos -args -histories $(N) -duration $(DURATION) -seed $(if $(SEED),$(SEED),1) -keep '$(KEEP)'

attack: ## clients that hold what they can, and writers of large values, against real processes; nothing else should run
	ATTACK=1 $(GO) test -count=1 -timeout 30m -v -run 'TestAttack|Descriptors' ./tests/e2e
	cd tests/tikv && ATTACK=1 $(GO) test -count=1 -timeout 30m -v -run TestLargeBatches .

planted: ## build known bugs in and see that the tests find them
	$(GO) test -count=1 -timeout 60m -v ./tests/planted -args -plant
	PLANTED=1 $(GO) test -count=1 -timeout 30m -v -run TestPlanted ./cmd/tinyscheduler

bench-build: build
	@mkdir -p bin/bench
	cd tests/bench/etcd && $(GO) build -o $(CURDIR)/bin/bench/etcd .
	cd tests/tikv && $(GO) build -o $(CURDIR)/bin/bench/clientgo ./clientgo
	$(GO) build -o bin/bench/ $$($(GO) list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' ./tests/bench/...)

bench-compare: bench-build ## TinyKV beside etcd; ROUNDS=n, QUICK=1, CELLS=put@128,get@32, SYSTEMS=tinykv, PROFILE=dir, JSON=file
	bin/bench/compare -rounds '$(ROUNDS)' -quick '$(QUICK)' -cells '$(CELLS)' -systems '$(SYSTEMS)' -profile '$(PROFILE)' -json '$(JSON)'

REGIONS ?= 1000
bench-regions: bench-build ## what REGIONS=n idle regions cost, and a restart with them
	bin/bench/regions -regions $(REGIONS)

bench-plots: bench-build ## draw throughput by regions and by value size into docs/
	bin/bench/plots -out docs

bench-trouble: bench-build ## p99 of puts at half load during snapshots, restarts, transfers, compactions
	bin/bench/trouble

DAMAGE ?= 100
corrupt: ## flip bits, cut and zero parts of every class of a store's files; DAMAGE=n rounds each of a whole store
	$(GO) test -count=1 -timeout 60m -v -run 'TestDamage|TestDamagedMarker|TestEveryByteOfARecord|TestMissingFiles|TestSyncedTailMissing' \
		./kv/raftlog ./kv/engine/... ./kv/raftstore/snap ./kv/node
	$(GO) test -count=1 -timeout 60m -v -run TestDamagedStore ./tests/damage -args -rounds $(DAMAGE)

T ?= 20s
fuzz: ## every fuzz target for T (20s)
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$f in $$pkg"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(T) $$pkg || exit 1; \
		done; \
	done

lint: fmt-check ## gofmt, vet, staticcheck
	$(GO) vet $(PKGS)
	$(GO) run $(STATICCHECK) $(PKGS)

lint-full: ## golangci-lint with .golangci.yml; the first time it builds the tool, which takes minutes
	$(GO) run $(GOLANGCI) run $(PKGS)

comma := ,
space := $(subst ,, )
FLOOR ?= 60
cover: ## how much of each package the short tests of all packages run, with what is below FLOOR percent marked; takes a quarter of an hour
	@rm -rf bin/cover && mkdir -p bin/cover
	$(GO) test -short -timeout 30m -coverpkg=$(subst $(space),$(comma),$(PKGS)) $(PKGS) -args -test.gocoverdir=$(CURDIR)/bin/cover >bin/cover.log || { grep -v '^ok' bin/cover.log; exit 1; }
	@$(GO) tool covdata percent -i=bin/cover | sed 's/%//' | sort -k3 -n | awk -v floor=$(FLOOR) \
		'{ mark = ""; if ($$3 < floor) { mark = "  below the floor"; low++ } printf "%6.1f %% %s%s\n", $$3, $$1, mark } \
		END { printf "floor: %d %%, packages below it: %d\n", floor, low }'

fmt-check: ## fail if gofmt would change a file
	@out=$$(gofmt -s -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); if [ -n "$$out" ]; then echo "gofmt -s would change:"; echo "$$out"; exit 1; fi

tidy-check: ## fail if go mod tidy would change a file
	$(GO) mod tidy -diff
	cd proto/gen && $(GO) mod tidy -diff
	cd tests/tikv && $(GO) mod tidy -diff && $(GO) mod tidy -modfile=client85.mod -diff
	cd tests/conformance && $(GO) mod tidy -diff
	cd tests/deploy && $(GO) mod tidy -diff

deploy-check: ## units, images and manifests of deploy/ against their schemas and the servers' options
	cd tests/deploy && $(GO) vet ./... && $(GO) test -count=1 -v ./...

tikv: ## TiKV's Go client against real processes: release 2.0.7 and the version of TiDB 8.5
	$(MAKE) -j2 --output-sync=target tikv-207 tikv-85

tikv-207: ## the older of them
	cd tests/tikv && $(GO) vet ./... && $(GO) test -count=1 ./...

CLIENT85 = -modfile=client85.mod -tags client85
tikv-85: ## the newer of them
	cd tests/tikv && $(GO) vet $(CLIENT85) ./... && $(GO) test -count=1 $(CLIENT85) ./...

test-seaweedfs: ## SeaweedFS with its filers on a cluster, end to end; the first build takes minutes and about 3 GB of modules
	cd tests/seaweedfs && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) test -count=1 -timeout 20m -v ./...

conformance: ## h2spec and gRPC's interoperability cases against pkg/rpc, and grpc-go beside it; prints the counts
	cd tests/conformance && $(GO) vet ./... && $(GO) test -count=1 -v ./...

proto: ## generate proto/pkg from proto/proto
	cd proto/gen && $(GO) run .

proto-check: ## fail if the generated code is out of date
	cd proto/gen && $(GO) run . -check

ci: lint tidy-check proto-check test tikv ## everything that a change must pass

clean: ## remove what was built
	rm -rf bin

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18
