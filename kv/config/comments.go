package config

import (
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// comments explain every key in Sample; a test sees that none is missing.
func comments() map[string]string {
	return tomlfile.Merged(rootComments, tomlfile.Prefixed("log.", log.Comments()), serverComments,
		raftstoreComments)
}

var rootComments = map[string]string{
	"scheduler": "Addresses of the placement service, [https://]host:port; all of its members.",
	"cluster-id": "The only cluster that a new store joins; 0: the one that the placement service serves. A " +
		"store that " +
		"has joined keeps to its cluster.",
	"addr": "Address to listen on for clients and other stores. One that other machines reach needs TLS or " +
		"security.insecure.",
	"advertise-addr":        "Address under which others reach addr; empty: addr.",
	"status-addr":           "Address of /metrics, /status, /health and so on; empty: none.",
	"advertise-status-addr": "Address under which others reach status-addr; empty: status-addr.",
	"data-dir":              "Directory of everything that the store keeps. It is made if it is missing.",
	"labels": "Labels of this store, such as zone = \"a\". The placement service spreads replicas by those in its " +
		"replication.location-labels.",

	"log": "Where lines of the log go.",

	"security":         "TLS, and who may connect (docs/security.md). Files are read again when they change.",
	"security.ca-path": "File of the authorities whose certificates are believed.",
	"security.cert-path": "File of this store's certificate. With it, all ports serve TLS, to those who show " +
		"a certificate of " +
		"the same authorities.",
	"security.key-path": "File of the certificate's private key.",
	"security.cert-allowed-cn": "Names of certificates that may connect; empty: all of the authorities. " +
		"Servers of the cluster always may.",
	"security.cert-node-cn": "Names of servers of the cluster, where certificates have no URI " +
		"of a role. Once one of these lists is set, such a certificate needs to be in one.",
	"security.cert-admin-cn":  "Names of admins, in the same way.",
	"security.cert-client-cn": "Names of clients, in the same way.",
	"security.allow-plain":    "Serve connections without TLS too, while a cluster changes to TLS.",
	"security.insecure":       "Accept that other machines are served without TLS.",
	"security.allowed-hosts":  "Further names of this store for requests to the status port; others are refused.",
	"security.redact-keys":    "Write hashes of keys to the log instead of keys.",

	"raftlog":              "The log of all regions of the store.",
	"raftlog.segment-size": "Size of one of its files.",
	"raftlog.cache-size":   "Memory for entries that were written last.",

	"gc": "Removal of old versions, in a cluster of transactions. One store at a time does it for all.",
	"gc.life-time": "For how long a version is kept after it was overwritten, and how long a transaction may " +
		"take; at " +
		"least 2m.",
	"gc.interval":          "How often old versions and locks of dead clients are looked for; 0: never.",
	"gc.max-bytes-per-sec": "Bytes of deletes that are written in a second.",
}

var serverComments = map[string]string{
	"server":                          "Limits of clients and connections (docs/operations.md).",
	"server.grpc-max-message":         "Size of one message; at least a quarter above raftstore.max-entry-size.",
	"server.grpc-max-streams":         "Calls at the same time on one connection.",
	"server.max-connections":          "Connections to addr; an eighth of them, 256 at most, is for other stores.",
	"server.max-connections-per-host": "Connections of clients from one address.",
	"server.max-answer-bytes": "Memory for answers that clients have not taken; at least four times " +
		"grpc-max-message.",
	"server.max-request-bytes": "Memory for requests larger than 16 KiB; at least twice grpc-max-message.",
	"server.stall-timeout": "How long a request may make no progress, and a client take nothing of its " +
		"answers, until " +
		"the connection is closed.",
	"server.max-key-size":           "Size of a key, at most 60KiB.",
	"server.max-scan-limit":         "Pairs in one answer to a scan.",
	"server.request-timeout":        "Time for one request inside of the store.",
	"server.shutdown-timeout":       "Time for handing leaders over and for requests under way, after SIGTERM.",
	"server.slow-log-threshold":     "Requests that take so long are logged, and writes stage by stage; 0: none.",
	"server.snapshot-send-limit":    "Raft snapshots sent at the same time.",
	"server.snapshot-receive-limit": "Raft snapshots received at the same time.",
	"server.snapshot-timeout":       "Time for sending one raft snapshot.",
	"server.snap-io-max-bytes-per-sec": "Bytes a second of raft snapshots built, and of those installed; 0: " +
		"no limit.",

	"storage": "The engine that holds the data.",
	"storage.raft": "false: one unreplicated store, without a placement service. Part of the data directory, " +
		"as is the engine.",
	"storage.engine": "Engine of a new data directory: pebble or badger.",
	"storage.memory": "Memory for blocks and memtables; 0B: a quarter of what the process may use, at most 384 MiB. In builds " +
		"without C, as " +
		"in packages and images, the process may grow by twice of it.",
	"storage.cache-size":    "Part of memory for blocks; 0B: it follows from memory.",
	"storage.memtable-size": "Size of one memtable; 0B: it follows from memory.",
	"storage.reserve-space": "Room that is kept free on the disk; with less, writes are refused.",
	"storage.capacity":      "Size that the store reports; 0B: that of the disk.",
}

var raftstoreComments = map[string]string{
	"raftstore":                 "The replicas. Ticks and lease-drift-percent must be the same on all stores.",
	"raftstore.tick-interval":   "Length of a tick, the clock of raft.",
	"raftstore.heartbeat-ticks": "Ticks between two heartbeats of a leader.",
	"raftstore.election-ticks":  "Ticks without a leader until an election; more than heartbeat-ticks by two.",
	"raftstore.read-mode": "lease: leaders answer reads by their clock; read-index: they ask a majority for " +
		"each read.",
	"raftstore.lease-drift-percent": "Part of the election timeout that a lease gives up for clocks of " +
		"different speed; 20 " +
		"suffices for rates of 0.9 and 1.1.",

	"raftstore.raft-workers":  "Workers of raft; each carries many regions.",
	"raftstore.apply-workers": "Workers that apply committed entries.",
	"raftstore.turn-regions":  "Regions that one raft worker takes with one sync.",

	"raftstore.max-entry-size":        "Size of one entry of a raft log, thus of one write.",
	"raftstore.max-batch-entry-size":  "Writes of different clients are put into one entry up to this size.",
	"raftstore.max-message-entries":   "Bytes of entries in one raft message.",
	"raftstore.max-inflight-messages": "Messages with entries on their way to one follower.",
	"raftstore.max-inflight-bytes":    "Bytes of entries on their way to one follower.",
	"raftstore.max-uncommitted-bytes": "Bytes of entries of one region that are not committed; at least " +
		"max-entry-size.",
	"raftstore.max-pending-proposals": "Proposals of one region without an answer; more are refused as " +
		"ServerIsBusy.",
	"raftstore.max-store-inflight-bytes": "Bytes of proposals of all regions without an answer; more are refused.",
	"raftstore.transfer-max-lag-entries": "Entries that a peer may lack to be given the leadership.",

	"raftstore.log-gc-interval": "How often the logs of regions are looked at for entries to remove.",
	"raftstore.log-gc-count-limit": "Entries of one region's log after which they go even if a replica lacks " +
		"them; it gets a raft snapshot then.",
	"raftstore.log-gc-size-limit": "The same in bytes.",
	"raftstore.log-gc-threshold":  "Fewest entries that are removed at once.",
	"raftstore.log-gc-keep": "How long entries stay that every replica has: writes that clients send again " +
		"are looked for " +
		"in them.",

	"raftstore.split-check-interval": "How often the sizes of regions are looked at.",
	"raftstore.region-max-size":      "Size of a region that is split.",
	"raftstore.region-split-size":    "Size of the pieces, at most region-max-size.",

	"raftstore.region-heartbeat-interval": "How often leaders report their regions to the placement service.",
	"raftstore.store-heartbeat-interval":  "How often the store reports itself.",
	"raftstore.scheduler-timeout":         "Time for one call to the placement service.",
	"raftstore.stale-peer-check": "How long a peer without a leader waits until it asks whether it is still a " +
		"member.",
	"raftstore.peer-down-after":      "Silence after which a leader reports a peer as down.",
	"raftstore.snapshot-gc-interval": "How often old files of raft snapshots are looked for.",
	"raftstore.snapshot-max-age":     "Age at which they are removed.",
	"raftstore.hibernate-after": "How long nothing must have happened in a region until it sleeps; 0: " +
		"never.",
	"raftstore.slow-sync": "Time after which a sync of the raft log counts as slow; 0: never. A store with a " +
		"slow disk gets no " +
		"more leaders and replicas.",
	"raftstore.compare-interval":          "How often the data of a region's replicas are compared; 0: never.",
	"raftstore.compare-max-bytes-per-sec": "Bytes a second that are read for that; 0: no limit.",
	"raftstore.expiry-sweep-interval": "How often keys that have expired are looked for, to give back their " +
		"space; 0: never.",
	"raftstore.region-merge": "Small regions may be merged. Experimental; in force once every store has it, " +
		"and it cannot be " +
		"taken back then.",
	"raftstore.async-commit": "Stores may choose the timestamps of commits. In force once every store has it.",
}
