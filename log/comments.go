package log

// Comments explain the keys of Config, by their dotted names, in samples of configuration files.
func Comments() map[string]string {
	return map[string]string{
		"level":            "debug, info, warn, error or fatal.",
		"format":           "text or json.",
		"file":             "A file that is rotated, instead of standard error.",
		"file.filename":    "Path of the file; empty: standard error. It must not lie in the data directory of a placement member.",
		"file.max-size":    "MiB after which a new file begins.",
		"file.max-days":    "Days that old files are kept; 0: for ever.",
		"file.max-backups": "How many old files are kept; 0: all.",
	}
}
