package engine

import (
	"bytes"
	"testing"
)

// FuzzKeys: physical keys give the user key back, keep its order, lie within the bounds of ranges
// exactly if the user key does, and never among those of another family or of the store's own
// records (O10).
func FuzzKeys(f *testing.F) {
	f.Add([]byte("a"), []byte("b"), uint8(0))
	f.Add([]byte{}, []byte{0xff, 0xff}, uint8(1))
	f.Add([]byte{0x01, 0x03}, []byte{'z', 'd'}, uint8(2))
	f.Add([]byte{0}, []byte{}, uint8(5))
	f.Fuzz(func(t *testing.T, a, b []byte, n uint8) {
		cf, other := CFs[int(n)%len(CFs)], CFs[(int(n)+1)%len(CFs)]
		ka, kb := DataKey(cf, a), DataKey(cf, b)
		if !bytes.Equal(UserKey(ka), a) || !bytes.Equal(AppendDataKey([]byte("x"), cf, a)[1:], ka) {
			t.Fatalf("%x of %x", ka, a)
		}
		if bytes.Compare(ka, kb) != bytes.Compare(a, b) {
			t.Fatalf("%x and %x change their order", a, b)
		}
		if before := bytes.Compare(ka,
			DataEndKey(cf, b)) < 0; before != (len(b) == 0 || bytes.Compare(a, b) < 0) {
			t.Fatalf("%x before the end %x: %v", a, b, before)
		}
		inside := func(k, lo, hi []byte) bool {
			return bytes.Compare(k, lo) >= 0 && bytes.Compare(k, hi) < 0
		}
		if inside(ka, DataKey(other, nil), DataEndKey(other, nil)) {
			t.Fatalf("%x of %s is inside %s", a, cf, other)
		}
		if ka[0] == LocalPrefix || inside(ka, []byte{LocalPrefix}, []byte{LocalPrefix + 1}) ||
			inside([]byte{LocalPrefix, n}, DataKey(cf, nil), DataEndKey(cf, nil)) {
			t.Fatalf("%x meets the store's own records", a)
		}
	})
}
