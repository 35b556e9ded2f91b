package config

import (
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// comments explain every key in Sample; a test sees that none is missing.
func comments() map[string]string {
	return tomlfile.Merged(rootComments, tomlfile.Prefixed("log.", log.Comments()),
		scheduleComments, otherComments)
}

var rootComments = map[string]string{
	"name": "Name of this member; empty: pd-<hostname>.",
	"data-dir": "Directory of everything that the member keeps; empty: default.<name>. It is made if it is " +
		"missing.",
	"client-urls": "URLs to serve clients and stores on. One that other machines reach needs TLS or " +
		"security.insecure.",
	"advertise-client-urls": "URLs under which others reach client-urls; empty: client-urls.",
	"peer-urls":             "URLs to serve other members on.",
	"advertise-peer-urls":   "URLs under which other members reach peer-urls; empty: peer-urls.",
	"initial-cluster": "All members of a new cluster, name=peer-url,... on each of them alike; empty: this " +
		"member alone. A " +
		"data directory that exists keeps its members.",
	"initial-cluster-state": "new, or existing for a member that was added by hand. With join it is not needed.",
	"initial-cluster-token": "Keeps members of different clusters apart while those begin.",
	"join":                  "Client URLs of a running cluster that a new member joins.",
	"force-new-cluster": "Begin a cluster of one member with this data directory, after a majority of members " +
		"was lost.",
	"recover": "File of tinyctl recover scheduler: an empty data directory takes over the cluster that it " +
		"describes.",
	"mode": "What a new cluster holds: raw keys, or txn for transactions. One that exists keeps its " +
		"mode.",
	"lease":     "Seconds that a leadership is valid without renewal, unless lease-ttl says it.",
	"lease-ttl": "The same as a duration; 0s: lease counts. At least 100ms.",
	"tso-save-interval": "How far ahead the limit of timestamps is written; a new leader waits until clocks " +
		"have passed it.",
	"quota-backend-bytes":  "Bytes of etcd's database; beyond them it refuses writes (tinyctl member reclaim).",
	"auto-compaction-mode": "How etcd forgets old revisions: periodic or revision.",
	"auto-compaction-retention": "Revisions that etcd keeps: those of this time (periodic), or this many " +
		"(revision).",
	"tick-interval":            "Time between two heartbeats of etcd.",
	"election-interval":        "Silence of etcd's leader until an election; at least five times tick-interval.",
	"enable-grpc-gateway":      "Without effect; files of TinyKV have it.",
	"max-connections":          "Connections to the client port; more are refused.",
	"max-connections-per-host": "Connections to the client port from one address; more are refused.",
	"max-request-bytes": "Bytes of requests by gRPC and of calls under way, 16 KiB each, in sum; beyond them " +
		"the connection that holds the most is closed.",
	"verify-stores": "Call a new store at the address that it tells before it gets regions.",
	"log-level":     "As level in [log], which it overrides.",
	"log-file":      "As filename in [log.file], which it overrides.",

	"log": "Where lines of the log go.",
}

var scheduleComments = map[string]string{
	"schedule": "How and how fast the cluster is repaired and balanced. These and [replication] begin a new " +
		"cluster; " +
		"later they change by tinyctl config set.",
	"schedule.patrol-region-interval": "Pause between two looks at a part of the regions.",
	"schedule.store-disconnect":       "Silence after which a store gets no replicas and leaders.",
	"schedule.max-store-down-time":    "Silence after which the replicas of a store are made anew elsewhere.",
	"schedule.max-peer-down-time": "Silence of a single peer, whose store reports, until it is replaced; at " +
		"most max-store-down-time.",
	"schedule.leader-schedule-limit":  "Moves of leaders for balance at the same time.",
	"schedule.region-schedule-limit":  "Moves of replicas for balance at the same time.",
	"schedule.replica-schedule-limit": "Repairs at the same time.",
	"schedule.merge-schedule-limit":   "Merges of small regions at the same time; 0: none.",
	"schedule.max-merge-region-size":  "MiB of a region that is merged into its neighbour, at most.",
	"schedule.max-merge-region-keys":  "Keys of such a region, at most.",
	"schedule.split-merge-interval": "How long a region is not merged after its split, and none after a " +
		"change of the placement leader.",
	"schedule.store-bytes-in-flight-mib": "MiB on their way to one store, and from it; repairs may use twice that.",
	"schedule.store-moves-in-flight":     "Moves on their way to one store, and from it; repairs may use twice that.",
	"schedule.low-space-ratio":           "Free part of a disk below which a store gets no more replicas.",
	"schedule.leader-tolerance":          "Leaders that one store must have more than another until one moves.",
	"schedule.leader-cooldown":           "Least time between two moves of one region's leader for balance.",
	"schedule.learner-first":             "Add replicas as learners first, once every store can promote them.",
	"schedule.weight-by-capacity":        "Give stores data in proportion to their disks.",
	"schedule.leader-step-timeout":       "Time for the move of a leader.",
	"schedule.peer-step-timeout":         "Time for a change of members; the time for the data comes on top.",
	"schedule.snapshot-rate-mib":         "MiB a second that are assumed for that.",
	"schedule.prepare-timeout": "How long a new placement leader waits for reports until it balances " +
		"anyway.",
	"schedule.schedulers":              "The balancing algorithms; tinyctl scheduler pauses them.",
	"schedule.schedulers.type":         "balance-region, balance-leader, evict-slow-store or merge.",
	"schedule.schedulers.args":         "Without effect; files of TinyKV have it.",
	"schedule.schedulers.disable":      "true: off.",
	"schedule.schedulers.args-payload": "Without effect; files of TinyKV have it.",
}

var otherComments = map[string]string{
	"replication":              "How many replicas a region has, and where.",
	"replication.max-replicas": "Replicas of each region, 1 to 15.",
	"replication.location-labels": "Labels of stores from the largest place to the smallest, such as " +
		"[\"zone\", \"host\"]: replicas are " +
		"spread over them.",

	"pd-server":                  "Files of PD have it.",
	"pd-server.max-reset-ts-gap": "Without effect.",

	"security":             "TLS, and who may connect (docs/security.md). Files are read again when they change.",
	"security.insecure":    "Accept that other machines are served without TLS.",
	"security.cacert-path": "File of the authorities whose certificates are believed.",
	"security.cert-path":   "File of this member's certificate, for URLs with https.",
	"security.key-path":    "File of the certificate's private key.",
	"security.cert-allowed-cn": "Names of certificates that may connect; empty: all of the authorities. " +
		"Servers of the cluster always may.",
	"security.cert-node-cn": "Names of servers of the cluster, where certificates have no URI " +
		"of a role. Once one of these lists is set, such a certificate needs to be in one.",
	"security.cert-admin-cn":  "Names of admins, in the same way.",
	"security.cert-client-cn": "Names of clients, in the same way.",
	"security.allow-plain": "Serve connections without TLS on the client port too, while a cluster changes to " +
		"TLS.",
	"security.redact-keys": "Write hashes of keys to the log instead of keys.",

	"storage":           "Where the placement service keeps its state.",
	"storage.backend":   "embedded: etcd inside of the members; etcd: a cluster of etcd that someone else runs.",
	"storage.endpoints": "Client URLs of that etcd.",

	"api": "The HTTP API and the page.",
	"api.token": "Token that changes must come with, as Authorization: Bearer; empty: only from this machine, " +
		"or with an admin's certificate.",
	"api.allowed-hosts":   "Further names of this server for requests; others are refused.",
	"api.allowed-origins": "Origins of other web pages that may use the API.",
}
