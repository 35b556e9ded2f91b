#!/bin/sh
# Data directories and the user stay, also when the package is purged: they may hold the only copy of something.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
