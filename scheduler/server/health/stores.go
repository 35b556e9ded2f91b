package health

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
)

func (a *assessment) judgeStores() {
	for _, info := range a.view.Stores {
		s := a.stores[info.ID()]
		if s.gone {
			continue // what is missing because of it shows at the regions
		}
		a.out.Counts.Stores++
		subject := fmt.Sprintf("store %d", info.ID())
		if info.IsOffline() {
			a.raise(StoreLeaving, subject, time.Time{}, 1, nil,
				fmt.Sprintf("is being emptied, %d replicas are left", info.RegionCount()))
		}
		if !s.connected {
			a.raise(StoreSilent, subject, info.SilentSince(), 1, nil, a.silence(info))
			continue // what it has reported is old
		}
		if info.IsUp() {
			a.out.Counts.StoresUp++
		}
		if why := info.Unproven(); why != "" {
			a.raise(StoreUnreached, subject, time.Time{}, 1, nil,
				fmt.Sprintf("is not reached at %s: %s", info.Address(), why))
		}
		a.judgeReport(subject, info)
	}
}

// silence says what a silent store's replicas can expect.
func (a *assessment) silence(s *core.StoreInfo) string {
	next := "they are replaced after " + a.view.Schedule.MaxStoreDownTime.D().String()
	if filter.Down(s, a.view.env()) {
		next = "they are being replaced where other stores have room"
	}
	return fmt.Sprintf("at %s has not reported for %s; it has %d replicas, %s", s.Address(),
		a.view.Now.Sub(s.SilentSince()).Round(time.Second), s.RegionCount(), next)
}

// judgeReport judges what a store says of itself.
func (a *assessment) judgeReport(subject string, info *core.StoreInfo) {
	stats := info.Stats()
	free := fmt.Sprintf("%s of %s are free", humanize.IBytes(info.Available()),
		humanize.IBytes(info.Capacity()))
	switch {
	case stats.GetIsDiskFull():
		a.raise(DiskFull, subject, time.Time{}, 1, nil, "refuses writes: "+free)
	case info.LowSpace(a.view.Schedule.LowSpaceRatio):
		a.raise(LowDisk, subject, time.Time{}, 1, nil, free)
	}
	if slow := info.Slowness(); slow.Now() {
		a.raise(SlowDisk, subject, slow.Since, 1, nil,
			fmt.Sprintf("syncs take %v, at other stores %v; leaders leave it",
				slow.Takes.Round(time.Millisecond), slow.Usual.Round(time.Millisecond)))
	} else if stats.GetIsSlow() {
		a.raise(SlowDisk, subject, time.Time{}, 1, nil,
			"its disk is slow, or has failed to read more than once")
	}
	if n := len(stats.GetDamagedPeerIds()); n > 0 {
		a.raise(Quarantined, subject, time.Time{}, n, few(stats.GetQuarantinedRegionIds()),
			replicas(n)+" damaged and not served")
	}
	if n := len(stats.GetDivergedRegionIds()); n > 0 {
		a.raise(Diverged, subject, time.Time{}, n, few(stats.GetDivergedRegionIds()), undecided(n))
	}
	if n := stats.GetReadErrors(); n > 0 {
		a.raise(ReadErrors, subject, time.Time{}, int(n), nil,
			fmt.Sprintf("%d reads have failed since its start", n))
	}
	if skew := info.Skew(); skew.Beyond(MaxSkew) {
		a.raise(ClockSkew, subject, time.Time{}, 1, nil, skewText(skew.Middle()))
	}
}

func replicas(n int) string {
	if n == 1 {
		return "1 replica is"
	}
	return fmt.Sprintf("%d replicas are", n)
}

// undecided are regions that the store leads.
func undecided(n int) string {
	if n == 1 {
		return "leads 1 region whose replicas differ, and none of their data has a majority"
	}
	return fmt.Sprintf(
		"leads %d regions whose replicas differ, and none of their data has a majority", n)
}

func few(regions []uint64) []uint64 { return regions[:min(len(regions), examples)] }
