//go:build !planted

package main

import (
	"fmt"
	"io"
)

func runPlanted(out io.Writer, _ string, _, _, _ int) int {
	fmt.Fprintln(out, "build with -tags planted")
	return 2
}
