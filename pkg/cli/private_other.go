//go:build !unix

package cli

// PrivateFiles does nothing: permissions of files are another matter here.
func PrivateFiles() {}
