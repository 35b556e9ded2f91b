package chaos

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/pkg/security"
)

var httpClient = &http.Client{Timeout: time.Second}

type apiPeer struct {
	StoreID uint64 `json:"store_id"`
	Learner bool   `json:"learner"`
}

type apiRegion struct {
	ID       uint64    `json:"id"`
	StartKey string    `json:"start_key"`
	EndKey   string    `json:"end_key"`
	Leader   uint64    `json:"leader_store"`
	Peers    []apiPeer `json:"peers"`
}

func (r *apiRegion) on(store uint64) bool {
	for _, p := range r.Peers {
		if p.StoreID == store {
			return true
		}
	}
	return false
}

func fetch(url string, into any) error {
	resp, err := httpClient.Get(url)
	if err != nil {
		return err
	}
	data, err := content(resp)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func content(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", resp.Request.URL, resp.Status, data)
	}
	return data, err
}

// each calls the API of one member after the other, past the proxies, until one answers.
func (h *history) each(path string, call func(url string) error) error {
	var errs []error
	for _, p := range h.c.Schedulers {
		err := call("http://" + p.Listen + "/api/v1" + path)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *history) get(path string, into any) error {
	return h.each(path, func(url string) error { return fetch(url, into) })
}

func (h *history) post(path, body string) error { return h.request(http.MethodPost, path, body) }

func (h *history) request(method, path, body string) error {
	return h.each(path, func(url string) error {
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(security.ProofHeader, "1")
		resp, err := httpClient.Do(req)
		if err != nil {
			return err
		}
		_, err = content(resp)
		return err
	})
}

func (h *history) regions() ([]apiRegion, error) {
	var out struct {
		Regions []apiRegion `json:"regions"`
	}
	err := h.get("/regions?limit=10000", &out)
	return out.Regions, err
}

type apiMember struct {
	Name    string `json:"name"`
	Learner bool   `json:"learner"`
}

func (h *history) members() ([]apiMember, error) {
	var out struct {
		Members []apiMember `json:"members"`
	}
	err := h.get("/members", &out)
	return out.Members, err
}

// stores maps the ids of stores that are not tombstones to their addresses.
func (h *history) stores() (map[uint64]string, error) {
	var out struct {
		Stores []struct {
			ID      uint64 `json:"id"`
			Address string `json:"address"`
			State   string `json:"state"`
		} `json:"stores"`
	}
	if err := h.get("/stores", &out); err != nil {
		return nil, err
	}
	m := map[uint64]string{}
	for _, s := range out.Stores {
		if s.State != "tombstone" {
			m[s.ID] = s.Address
		}
	}
	return m, nil
}

func (h *history) regionOf(key []byte) (*apiRegion, error) {
	var out struct {
		Regions []apiRegion `json:"regions"`
	}
	if err := h.get("/regions?hexkey="+hex.EncodeToString(key), &out); err != nil {
		return nil, err
	}
	if len(out.Regions) != 1 {
		return nil, errors.New("no region")
	}
	return &out.Regions[0], nil
}

// splitAt orders a split unless the key begins a region already.
func (h *history) splitAt(key []byte) error {
	r, err := h.regionOf(key)
	if err != nil || r.StartKey == hex.EncodeToString(key) {
		return err
	}
	return h.post(fmt.Sprintf("/regions/%d/split", r.ID),
		fmt.Sprintf(`{"keys": [%q]}`, hex.EncodeToString(key)))
}

// anyRegion is used by the track of orders; its choice need not follow the seed, as timing does
// not.
func (h *history) anyRegion() (*apiRegion, error) {
	regs, err := h.regions()
	if err != nil {
		return nil, err
	}
	if len(regs) == 0 {
		return nil, errors.New("no regions")
	}
	return &regs[rand.IntN(len(regs))], nil
}

func (h *history) transferStorm(*rand.Rand) error {
	r, err := h.anyRegion()
	if err != nil || len(r.Peers) == 0 {
		return errors.Join(err, errors.New("no peers"))
	}
	for _, p := range r.Peers {
		if p.StoreID != r.Leader {
			return h.post(fmt.Sprintf("/regions/%d/transfer-leader", r.ID),
				fmt.Sprintf(`{"to": %d}`, p.StoreID))
		}
	}
	return errors.New("no follower")
}

func (h *history) splitStorm(*rand.Rand) error {
	k := append(key(rand.IntN(keyCount)), byte('0'+rand.IntN(4)))
	return h.splitAt(h.place(k))
}

// move moves a replica to a store that has none, or away from a random one for a while.
func (h *history) move(*rand.Rand) error {
	r, err := h.anyRegion()
	if err != nil {
		return err
	}
	addrs, err := h.stores()
	if err != nil {
		return err
	}
	from := r.Peers[rand.IntN(len(r.Peers))].StoreID
	for to := range addrs {
		if !r.on(to) {
			return h.post(fmt.Sprintf("/regions/%d/move-peer", r.ID),
				fmt.Sprintf(`{"from": %d, "to": %d}`, from, to))
		}
	}
	// All stores have one: the replica checker puts it back.
	return h.post(fmt.Sprintf("/regions/%d/remove-peer", r.ID), fmt.Sprintf(`{"from": %d}`, from))
}

var knownKey = regexp.MustCompile(`^key-\d{3}(-pad|~\d-\d{4,}-[ab])?$`)

// check verifies the history and that the replicas agree.
func (h *history) check() {
	if h.lists == nil {
		h.finalScan()
		h.rec.Check(h.t)
	} else {
		h.lists.check(h)
	}
	var replicas int
	h.eventually(30*time.Second, func() (err error) {
		replicas, err = h.compareReplicas()
		return err
	})
	h.t.Logf("%d replicas compared", replicas)
}

// finalScan reads everything: as the last reads of the history, and nothing else may be there.
func (h *history) finalScan() {
	h.eventually(20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Second)
		defer cancel()
		return h.scan(ctx, h.rec.Client(), 0, keyCount, h.rec.Now())
	})
	h.eventually(20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Second)
		defer cancel()
		kvs, err := h.cl.Scan(ctx, nil, nil, 10_000)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			if !knownKey.Match(kv.Key) {
				h.t.Errorf("nobody has written the key %q", kv.Key)
			}
		}
		return nil
	})
}

// compareReplicas compares the hashes of every region on the stores that the placement service
// names, and looks for peers that it does not.
func (h *history) compareReplicas() (int, error) {
	regs, err := h.regions()
	if err != nil {
		return 0, err
	}
	addrs, err := h.stores()
	if err != nil {
		return 0, err
	}
	status := map[string]string{}
	for _, p := range h.c.Stores {
		status[p.Addr] = p.Status
	}
	n, at := 0, ""
	byID := map[uint64]*apiRegion{}
	for i := range regs {
		r := &regs[i]
		byID[r.ID] = r
		if r.StartKey != at {
			return 0,
				fmt.Errorf("region %d begins at %q, the one before ends at %q", r.ID, r.StartKey,
					at)
		}
		at = r.EndKey
		if len(r.Peers) != 3 {
			return 0, fmt.Errorf("region %d has %d peers", r.ID, len(r.Peers))
		}
		var first raftstore.RegionHash
		for j, p := range r.Peers {
			if p.Learner {
				return 0,
					fmt.Errorf("region %d: the replica on store %d has no vote", r.ID, p.StoreID)
			}
			var hash raftstore.RegionHash
			if err := fetch(fmt.Sprintf("http://%s/hash?region=%d", status[addrs[p.StoreID]], r.ID),
				&hash); err != nil {
				return 0, err
			}
			if j == 0 {
				first = hash
			}
			if hash != first {
				return 0,
					fmt.Errorf("region %d: store %d has %+v, store %d has %+v", r.ID,
						r.Peers[0].StoreID, first, p.StoreID, hash)
			}
			n++
		}
	}
	if at != "" {
		return 0, fmt.Errorf("the last region ends at %q", at)
	}
	for _, p := range h.c.Stores {
		var infos []raftstore.PeerInfo
		if err := fetch("http://"+p.Status+"/regions", &infos); err != nil {
			return 0, err
		}
		for _, info := range infos {
			if r := byID[info.Region.Id]; r == nil || !r.on(info.Peer.StoreId) {
				return 0,
					fmt.Errorf("%s has a peer of region %d that it should not have", p.Name,
						info.Region.Id)
			}
		}
	}
	return n, nil
}
