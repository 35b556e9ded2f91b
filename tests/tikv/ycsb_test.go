package tikv

import (
	"context"
	"errors"
	"flag"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/magiconair/properties"
	_ "github.com/pingcap/go-ycsb/db/tikv"
	ycsbclient "github.com/pingcap/go-ycsb/pkg/client"
	"github.com/pingcap/go-ycsb/pkg/measurement"
	_ "github.com/pingcap/go-ycsb/pkg/workload"
	"github.com/pingcap/go-ycsb/pkg/ycsb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/config"
	tikverr "github.com/tikv/client-go/v2/error"
)

var (
	flagPD  = flag.String("pd", "", "run go-ycsb against the cluster of this placement service")
	flagOps = flag.String("ops", "1000", "operations of each of go-ycsb's workloads")
)

// watched is a database of go-ycsb that counts what goes wrong: go-ycsb itself goes on silently.
type watched struct {
	ycsb.DB
	done, failed atomic.Int64
	// conflicts are updates at which another one was faster; they count as done.
	conflicts atomic.Int64
	first     atomic.Pointer[error]
}

var errMissing = errors.New("a row that was inserted is not there")

func (w *watched) note(err error) error {
	w.done.Add(1)
	switch {
	case tikverr.IsErrWriteConflict(err):
		w.conflicts.Add(1)
		return nil
	case err != nil:
		w.failed.Add(1)
		w.first.CompareAndSwap(nil, &err)
	}
	return err
}

func (w *watched) Read(
	ctx context.Context, table, key string, fields []string,
) (map[string][]byte, error) {
	row, err := w.DB.Read(ctx, table, key, fields)
	if err == nil && len(row) == 0 {
		err = errMissing
	}
	return row, w.note(err)
}

func (w *watched) Scan(
	ctx context.Context, table, start string, count int, fields []string,
) ([]map[string][]byte, error) {
	rows, err := w.DB.Scan(ctx, table, start, count, fields)
	if err == nil && len(rows) == 0 {
		err = errMissing
	}
	return rows, w.note(err)
}

func (w *watched) Update(ctx context.Context, table, key string, values map[string][]byte) error {
	return w.note(w.DB.Update(ctx, table, key, values))
}

func (w *watched) Insert(ctx context.Context, table, key string, values map[string][]byte) error {
	return w.note(w.DB.Insert(ctx, table, key, values))
}

// workloads are what go-ycsb's files workloads/workload[a-f] say.
var workloads = []struct{ name, text string }{
	{"a", "readproportion=0.5 updateproportion=0.5 requestdistribution=uniform"},
	{"b", "readproportion=0.95 updateproportion=0.05 requestdistribution=uniform"},
	{"c", "readproportion=1 updateproportion=0 requestdistribution=uniform"},
	{
		"d",
		"readproportion=0.95 updateproportion=0 insertproportion=0.05 requestdistribution=latest",
	},
	{"e", "readproportion=0 updateproportion=0 scanproportion=0.95 insertproportion=0.05 " +
		"requestdistribution=uniform maxscanlength=1 scanlengthdistribution=uniform"},
	{
		"f",
		"readproportion=0.5 updateproportion=0 readmodifywriteproportion=0.5 requestdistribution=uniform",
	},
}

// runWorkload loads go-ycsb's table, or runs a workload on it. Rows have the values that follow
// from their keys: go-ycsb ends the process if it reads another one.
func runWorkload(t *testing.T, pd, kind, name, text string) {
	t.Helper()
	p, err := properties.LoadString(strings.ReplaceAll(text, " ", "\n"))
	require.NoError(t, err)
	for key, value := range map[string]string{
		"workload": "core", "recordcount": "1000", "operationcount": *flagOps, "threadcount": "16",
		"dataintegrity": "true",
		"tikv.pd":       pd, "tikv.type": kind, "silence": "false",
	} {
		if _, ok := p.Get(key); ok {
			continue
		}
		_, _, err := p.Set(key, value)
		require.NoError(t, err)
	}
	measurement.InitMeasure(p)
	w, err := ycsb.GetWorkloadCreator("core").Create(p)
	require.NoError(t, err)
	db, err := ycsb.GetDBCreator("tikv").Create(p)
	require.NoError(t, err)
	counted := &watched{DB: db}
	ycsbclient.NewClient(p, w, ycsbclient.DbWrapper{DB: counted}).Run(context.Background())
	t.Logf("%s: %d operations, %d conflicts, %d failed", name, counted.done.Load(),
		counted.conflicts.Load(), counted.failed.Load())
	require.Less(t, counted.conflicts.Load(), counted.done.Load()/2+1)
	measurement.Output()
	require.NoError(t, w.Close())
	require.NoError(t, db.Close())
	if err := counted.first.Load(); err != nil {
		t.Errorf("workload %s: %d operations failed, the first one: %v", name,
			counted.failed.Load(), *err)
	}
	require.GreaterOrEqual(t, counted.done.Load(), p.GetInt64("operationcount", 0))
}

// go-ycsb, with its own driver and the number of connections that it has by default, loads its
// table and runs its six workloads over several regions.
func TestYCSB(t *testing.T) {
	before := config.GetGlobalConfig() // go-ycsb's driver changes it
	t.Cleanup(func() { config.StoreGlobalConfig(before) })
	pd := *flagPD
	var c *cluster
	if pd == "" {
		c = startCluster(t, 3)
		pd = c.scheduler.addr
		// waits for the first region
		require.NoError(t, c.client(t).Put(context.Background(), []byte("begin"), []byte("v")))
	}
	runWorkload(t, pd, "raw", "load", "dotransactions=false operationcount=1000")
	if c != nil {
		c.splitAt(t, "usertable:user3", "usertable:user5", "usertable:user7")
	}
	for _, w := range workloads {
		runWorkload(t, pd, "raw", w.name, w.text)
	}
}

// The same as transactions, which go-ycsb commits asynchronously and in one phase by default, and
// this cluster in two.
func TestYCSBTransactions(t *testing.T) {
	before := config.GetGlobalConfig()
	t.Cleanup(func() { config.StoreGlobalConfig(before) })
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	runWorkload(t, c.scheduler.addr, "txn", "load", "dotransactions=false operationcount=1000")
	c.splitTxn(t, cl, "usertable:user3", "usertable:user5", "usertable:user7")
	for _, w := range workloads {
		runWorkload(t, c.scheduler.addr, "txn", w.name, w.text)
	}
}
