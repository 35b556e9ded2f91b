//go:build !planted

package main

import (
	"errors"
	"fmt"
	"io"
)

func runPlanted(out io.Writer, _ string, _, _, _ int) int {
	fmt.Fprintln(out, "build with -tags planted")
	return 2
}

func switchOn(string) error { return errors.New("build with -tags planted") }
