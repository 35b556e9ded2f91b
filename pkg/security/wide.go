package security

import (
	"fmt"
	"os"
)

// Wide lists those of the files and directories that others than their owner may read or write,
// each with what to do. What is not there, or has an empty name, is left out.
func Wide(paths ...string) []string {
	var out []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if path == "" || err != nil || info.Mode().Perm()&0o077 == 0 {
			continue
		}
		right := 0o600
		if info.IsDir() {
			right = 0o700
		}
		out = append(out,
			fmt.Sprintf("%s is open to other users of this machine (%04o): chmod %04o", path,
				info.Mode().Perm(), right))
	}
	return out
}
