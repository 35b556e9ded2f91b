package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// Somebody fills etcd, which refuses all writes from then on: nobody can lead. Health, members,
// metrics and errors say why; making room ends it.
func TestNoSpaceIsSaidAndReclaimed(t *testing.T) {
	const quota = 4 << 20
	s := servertest.StartTest(t, func(c *config.Config) { c.QuotaBackendBytes = quota })
	c, _ := bootstrapped(t, s, 1)
	before, err := c.AllocID(t.Context())
	require.NoError(t, err)
	etcd := server.EtcdOf(s)
	value := string(make([]byte, 256<<10))
	for i := 0; ; i++ {
		require.Less(t, i, 10*quota/len(value), "etcd accepts more than its quota")
		if _, err = etcd.Put(t.Context(), "/somebody/elses", value); err != nil {
			break
		}
	}
	require.ErrorContains(t, err, "database space exceeded")

	require.Eventually(t, func() bool {
		return !s.IsLeader() && callStatus(t, s, "GET", "/health") == 503
	}, waitFor, tick)
	said := call(t, s, "GET", "/health", "", 503)
	require.Equal(t, "no-space", said["code"])
	require.Contains(t, said["message"], "alarm NOSPACE of member test")
	require.Contains(t, said["detail"], "reclaim")
	require.Equal(t, "no-space", call(t, s, "GET", "/stores", "", 503)["code"])
	require.Equal(t, "NOSPACE",
		call(t, s, "GET", "/members", "", 200)["members"].([]any)[0].(map[string]any)["alarm"])
	require.Contains(t, metricsOf(t, s.ClientURL()), `tinykv_etcd_alarm{member=`)
	require.Eventually(t, func() bool { // the call may end before the first answer
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.AllocID(ctx)
		return err != nil && strings.Contains(err.Error(), "NOSPACE")
	}, waitFor, tick)

	_, err = etcd.Delete(t.Context(), "/somebody/elses")
	require.NoError(t, err)
	require.Empty(t, call(t, s, "POST", "/reclaim", "", 200)["alarms"])
	require.NotContains(t, metricsOf(t, s.ClientURL()), "tinykv_etcd_alarm{")
	id, err := c.AllocID(t.Context())
	require.NoError(t, err)
	require.Greater(t, id, before)
	require.Eventually(t, func() bool {
		return callStatus(t, s, "GET", "/health") == 200
	}, waitFor, tick)
}

func metricsOf(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
	require.NoError(t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err, fmt.Sprint(resp.Status))
	return string(data)
}
